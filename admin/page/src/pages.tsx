import { useEffect, useRef, useState } from "preact/hooks"
import {
  call, download, follow, type Certificate, type Denial, type Explanation, type Field, type Held, type Listener, type Outcome, type Overview, type Revision, type Services as All, type Session, type Status,
} from "./api"
import { Badge, Confirmed, Failure, Spark, Table, text, Time, useCall } from "./ui"

const seconds = 1000

// Home keeps a point for each poll, so its lines begin when the page is opened.
const points = 60
export function Home({ overview, error }: { overview: Overview | undefined; error: string | undefined }) {
  const last = useRef<{ at: number; denied: number } | null>(null)
  const [rates, setRates] = useState<number[]>([])
  const denied = (overview?.decisions["deny"] ?? 0) + (overview?.decisions["error"] ?? 0)
  useEffect(() => {
    if (!overview) return
    const at = Date.parse(overview.now)
    if (last.current && at > last.current.at) {
      const perMinute = Math.max(0, (denied - last.current.denied) * 60 * seconds / (at - last.current.at))
      setRates(r => [...r, perMinute].slice(-points))
    }
    last.current = { at, denied }
  }, [overview])
  if (!overview) return <Failure of={error} />
  const rate = Math.round(rates.at(-1) ?? 0)
  const logins = Object.entries(overview.logins).filter(([, n]) => n > 0)
  return <>
    <Failure of={error} />
    <div class="cards">
      <section class="card">
        <h2>Ready {overview.ready ? <Badge kind="good">yes</Badge> : <Badge kind="bad">no</Badge>}</h2>
        <dl>{Object.entries(overview.checks).sort().map(([name, state]) => <div key={name}>
          <dt>{name}</dt><dd>{state === "ok" ? <Badge kind="good">ok</Badge> : <Badge kind={overview.ready ? "warn" : "bad"}>{state}</Badge>}</dd>
        </div>)}</dl>
      </section>
      <section class="card">
        <h2>Serving</h2>
        <dl>
          <div><dt>version</dt><dd><code>{overview.version || "none yet"}</code>{overview.envoys > overview.verified && <> <Badge kind="warn">not verified</Badge></>}</dd></div>
          <div><dt>from</dt><dd class="path">{overview.source || "–"}</dd></div>
          <div><dt>Gatepost</dt><dd>{overview.gatepost_version}</dd></div>
          <div><dt>services</dt><dd><a href="#/services" aria-label={overview.services + " services"}>{overview.services}</a></dd></div>
          <div><dt>Envoys</dt><dd><a href="#/envoys" aria-label={overview.envoys + " Envoys"}>{overview.envoys}</a>{overview.envoys > 0 && (overview.verified === overview.envoys ? ", all verified" : `, ${overview.verified} verified`)}</dd></div>
          <div><dt>tokens</dt><dd>{overview.in_envoy ? "checked inside Envoy" : "checked by Gatepost"}</dd></div>
          <div><dt>look-ups by Gatepost</dt><dd>{overview.from_memory ? "in memory" : "in the store"}</dd></div>
        </dl>
      </section>
      <section class="card">
        <h2>Denied per minute</h2>
        <p class="big">{rate}</p>
        <Spark values={rates} label={`Denied per minute since this page was opened, now ${rate}`} />
        <dl>{["allow", "deny", "error"].map(d => <div key={d}><dt>{d} since the start</dt><dd>{overview.decisions[d] ?? 0}</dd></div>)}</dl>
      </section>
      <section class="card">
        <h2>Logins since the start</h2>
        {logins.length === 0 ? <p>none</p> : <dl>{logins.map(([name, n]) => <div key={name}><dt>{name}</dt><dd>{n}</dd></div>)}</dl>}
      </section>
    </div>
    <Listeners />
    <Download path="support" name="gatepost-support.tar.gz" label="Download a support bundle" note="It has no secrets, but addresses of clients." />
  </>
}

function Listeners() {
  const { value, error } = useCall<Status>("status", 5 * seconds)
  return <>
    <Failure of={error} />
    {value && <Table caption="Listeners" empty="No listener is served yet." heads={["Protocol", "Address", "TLS", "Settings"]}>
      {value.listeners.map(l => <tr key={l.protocol + l.address}>
        <th scope="row">{l.protocol}</th>
        <td><code>{l.address}</code>{l.problem && <> <Badge kind="bad">not served</Badge> {l.problem}</>}</td>
        <td>{l.min_version ? `${l.min_version} and later` : "no"}</td>
        <td>{settings(l) || "–"}</td>
      </tr>)}
    </Table>}
  </>
}

const settings = (l: Listener) => [
  l.redirect && "redirects to https", l.client_certificates && "client certificates " + l.client_certificates, l.proxy_protocol && "PROXY protocol",
].filter(Boolean).join(", ")

function Download({ path, name, label, note }: { path: string; name: string; label: string; note?: string }) {
  const [error, setError] = useState<string>()
  return <p>
    <button onClick={() => download(path, name).then(() => setError(undefined), e => setError(text(e)))}>{label}</button> {note}
    <Failure of={error} />
  </p>
}

function Rejected({ of }: { of: Status | undefined }) {
  return of?.rejected ? <p class="bad note" role="alert">The newest definitions are not served as they are: {of.rejected}</p> : null
}

const healths = { healthy: "good", unhealthy: "bad", resting: "warn", unchecked: "plain" } as const
const states = { served: "good", former: "warn", withheld: "bad" } as const

export function Services() {
  const { value, error } = useCall<All>("services", 3 * seconds)
  const status = useCall<Status>("status", 3 * seconds)
  return <>
    <Failure of={error} />
    <Rejected of={status.value} />
    {value?.unknown && <p class="note">The state of upstreams is not known: {value.unknown}</p>}
    {value && <Table caption="Services as they are served" empty="No service is served." heads={["Service", "Path", "Access", "Methods", "Upstreams", "Requests", "Last request", "State"]}>
      {value.services.map(s => <tr key={s.name}>
        <th scope="row">{s.name}<small class="path">{s.file}:{s.line}</small></th>
        <td>{s.hosts?.join(", ")} <a href={explainLink(s.methods[0] ?? "GET", s.path, [s.hosts?.[0] && "Host: " + s.hosts[0].replace("*", "www")])}>{s.path}</a></td>
        <td>{s.public ? <Badge kind="warn">public</Badge> : s.scopes?.length ? "scopes " + s.scopes.join(", ") : "token"}</td>
        <td>{s.methods.join(" ")}</td>
        <td>{s.upstreams.map(u => <div key={u.address} class="upstream">
          <Badge kind={healths[u.health]}>{u.health}</Badge> {u.address}{u.name && ` of ${u.name}`}{u.canary && ` (canary, ${s.canary_percent ?? 0} %)`}
        </div>)}{s.no_address?.map(name => <div key={name} class="upstream"><Badge kind="bad">no address</Badge> {name}</div>)}{s.limits_reached && <Badge kind="bad">{"limit reached: " + s.limits_reached.join(", ")}</Badge>}</td>
        <td class="number">{value.unknown ? "–" : `${sum(s.upstreams, "requests")} (${sum(s.upstreams, "errors")} failed)`}</td>
        <td>{value.unknown ? "–" : <Time of={s.last_request} />}</td>
        <td><Badge kind={states[s.state]}>{s.state}</Badge></td>
      </tr>)}
    </Table>}
  </>
}

const sum = (all: { requests: number; errors: number }[], what: "requests" | "errors") => all.reduce((n, e) => n + e[what], 0)

const explainLink = (method: string, url: string, headers: (string | false | undefined)[], token = false) =>
  "#/explain?" + new URLSearchParams({ method, url, headers: headers.filter(Boolean).join("\n"), token: token ? "1" : "" }).toString()

// explainDenial explains the request of a denial. Its token is not known: there is an outcome for each state of one.
const explainDenial = (d: Denial) => explainLink(d.method, d.path.replace(/…$/, ""), [
  d.host && "Host: " + d.host, d.origin && "Origin: " + d.origin, d.reason === "token_malformed" && "Authorization: malformed",
], !!d.token)

const shownDenials = 200

export function Denials() {
  const before = useCall<Denial[]>("denials")
  const [live, setLive] = useState<Denial[]>([])
  const [paused, setPaused] = useState(false)
  const [state, setState] = useState("connecting")
  const [filter, setFilter] = useState("")
  useEffect(() => {
    if (paused) return
    const abort = new AbortController()
    void (async () => {
      while (!abort.signal.aborted) {
        try {
          await follow(abort.signal, () => { setState("live"); before.reload() }, d => setLive(all => [d, ...all].slice(0, shownDenials)))
        } catch (e) {
          if (abort.signal.aborted) return
          setState("not live: " + text(e))
          before.reload()
          await new Promise(r => setTimeout(r, 2 * seconds))
        }
      }
    })()
    return () => abort.abort()
  }, [paused])
  const seen = new Set<string>()
  const all = [...live, ...(before.value ?? [])].filter(d => {
    const id = d.time + d.request_id
    return !seen.has(id) && seen.add(id)
  })
  const words = filter.toLowerCase().split(/\s+/)
  const shown = all.filter(d => {
    const line = `${d.service} ${d.reason} ${d.client} ${d.request_id} ${d.method} ${d.host} ${d.path} ${d.origin ?? ""}`.toLowerCase()
    return words.every(w => line.includes(w))
  }).slice(0, shownDenials)
  return <>
    <div class="row">
      <label class="wide">Filter <input type="search" value={filter} onInput={e => setFilter(e.currentTarget.value)} placeholder="service, reason, client, request id" /></label>
      <button aria-pressed={paused} onClick={() => { setPaused(!paused); setState(paused ? "connecting" : "paused") }}>{paused ? "Continue" : "Pause"}</button>
      <span role="status">{state}, {shown.length} shown</span>
    </div>
    <Failure of={before.error} />
    <Table caption="Requests that did not pass, the newest first" empty="None yet." heads={["Time", "Service", "Reason", "Request", "Client", "Explain"]}>
      {shown.map(d => <tr key={d.time + d.request_id}>
        <td><Time of={d.time} /></td>
        <td>{d.service || "–"}</td>
        <td><Badge kind={d.decision === "error" ? "bad" : "warn"}>{d.reason}</Badge></td>
        <td class="path">{d.method} {d.path}<small>{d.host && `at ${d.host}`} {d.origin && `from ${d.origin}`}</small></td>
        <td>{d.client}</td>
        <td><a href={explainDenial(d)} aria-label={`Explain ${d.method} ${d.path}`}>explain</a></td>
      </tr>)}
    </Table>
    <p>What Envoy answers by itself, such as 404, 405 and 429, is in the access log alone.</p>
  </>
}

export function Explain({ query }: { query: URLSearchParams }) {
  const [method, setMethod] = useState(query.get("method") || "GET")
  const [url, setURL] = useState(query.get("url") || "")
  const [headers, setHeaders] = useState(query.get("headers") || "")
  const [anyToken, setAnyToken] = useState(query.get("token") === "1")
  const [answer, setAnswer] = useState<Explanation>()
  const [error, setError] = useState<string>()
  const ask = async (e?: Event) => {
    e?.preventDefault()
    const fields: Field[] = headers.split("\n").filter(h => h.trim() !== "").map(h => {
      const colon = h.indexOf(":")
      return { name: h.slice(0, colon).trim(), value: h.slice(colon + 1).trim() }
    })
    try {
      setAnswer(await call<Explanation>("POST", "explain", { method: method.trim(), url, headers: fields, any_token: anyToken }))
      setError(undefined)
    } catch (e) { setAnswer(undefined); setError(text(e)) }
  }
  useEffect(() => { if (url !== "") void ask() }, [])
  return <>
    <form class="explain" onSubmit={ask}>
      <label>Method <input value={method} onInput={e => setMethod(e.currentTarget.value)} size={8} required list="methods" /></label>
      <datalist id="methods">{["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].map(m => <option key={m} value={m} />)}</datalist>
      <label class="wide">Path or URL <input value={url} onInput={e => setURL(e.currentTarget.value)} required placeholder="/orders/5" /></label>
      <label class="wide">Headers, one on each line <textarea rows={2} value={headers} onInput={e => setHeaders(e.currentTarget.value)} placeholder="Origin: https://shop.example" /></label>
      <label class="check"><input type="checkbox" checked={anyToken} onChange={e => setAnyToken(e.currentTarget.checked)} /> with a token, whatever its state</label>
      <button class="primary">Explain</button>
    </form>
    <Failure of={error} />
    <div aria-live="polite">{answer && <Path of={answer} />}</div>
  </>
}

// Path draws the path that a request takes.
function Path({ of }: { of: Explanation }) {
  return <>
    <h2 class="path">{of.method} {of.target}</h2>
    <ol class="steps">
      {of.steps.map((s, i) => <li key={i}><b>{s.part}</b> <span>{s.says}</span></li>)}
      {of.service && <li><b>defined</b> <span class="path">{of.service.file}:{of.service.line}</span></li>}
      {of.outcomes.map((o, i) => <li key={"o" + i} class={"outcome " + (o.forward ? "good" : (o.status ?? 400) >= 400 ? "bad" : "good")}><Answer of={o} /></li>)}
    </ol>
    {of.unsure && <p class="note">These settings of Envoy are not followed: {of.unsure.join(", ")}</p>}
    <p>Explained with version <code>{of.version}</code>, as it is served.</p>
  </>
}

function Answer({ of }: { of: Outcome }) {
  const to = of.forward?.token_handler ? "the token handler" : of.forward?.to?.join(" or ")
  return <div>
    {of.when && <p>if {of.when}:</p>}
    <p><b>{of.forward ? `forwarded to ${to} as ${of.forward.method} ${of.forward.path}` : of.status ?? "no response"}</b> <Badge kind={of.forward ? "good" : "warn"}>{of.reason}</Badge></p>
    <p>{of.why}</p>
    {of.change && <p><b>change</b> {of.change}</p>}
    {of.headers && <pre>{of.headers.map(h => `${h.name}: ${h.value}`).join("\n")}{of.body ? "\n\n" + of.body : ""}</pre>}
    {of.see && <p><small>{of.see}</small></p>}
  </div>
}

export function Sessions({ may }: { may: Overview["may"] }) {
  const [typed, setTyped] = useState("")
  const [user, setUser] = useState<string>()
  return <>
    <form class="row" onSubmit={e => { e.preventDefault(); setUser(typed) }}>
      <label>User id <input value={typed} onInput={e => setTyped(e.currentTarget.value)} required /></label>
      <button class="primary">Show sessions</button>
      <span>The id is what the user service calls the user, not the login name.</span>
    </form>
    {user !== undefined && <SessionsOf key={user} user={user} may={may} />}
  </>
}

function SessionsOf({ user, may }: { user: string; may: Overview["may"] }) {
  const { value, error, reload } = useCall<Session[]>(`users/${encodeURIComponent(user)}/sessions`)
  const mayEnd = may !== "read"
  return <>
    <Failure of={error} />
    {value && <Table caption={`Sessions of ${user}`} empty={`${user} has no session.`} heads={["Session", "Login", "Last seen", "Expires", "Client", "End"]}>
      {value.map(s => <tr key={s.id}>
        <th scope="row"><code>{s.id}</code>{s.scopes && <small>{s.scopes.join(", ")}</small>}</th>
        <td><Time of={s.issued} /><small>{s.client_address}</small></td>
        <td><Time of={s.last_seen} /><small>{s.last_address}</small></td>
        <td><Time of={s.expires} /></td>
        <td>{s.user_agent || "–"}</td>
        <td>{mayEnd ? <Confirmed label="End" question="End it on all gateways?" act={() => call("DELETE", "sessions/" + encodeURIComponent(s.id))} done={reload} /> : "needs a token"}</td>
      </tr>)}
    </Table>}
    {mayEnd && (value?.length ?? 0) > 1 && <Confirmed label="End all" question={`End all sessions of ${user}?`} act={() => call("DELETE", `users/${encodeURIComponent(user)}/sessions`)} done={reload} />}
  </>
}

export function Revisions({ may }: { may: Overview["may"] }) {
  const { value, error, reload } = useCall<Revision[]>("revisions", 5 * seconds)
  const [shown, setShown] = useState<number>()
  const newest = value?.[0]?.number ?? 0
  return <>
    <Failure of={error} />
    {value && <Table caption="Definitions that were served, the newest first" empty="There is no revision yet." heads={["Revision", "When", "By", "Change", "Message", "Action"]}>
      {value.map(r => <tr key={r.number}>
        <th scope="row">{r.number}{r.number === newest && <small>newest</small>}</th>
        <td><Time of={r.stored} /></td>
        <td>{r.who}</td>
        <td>{r.change}</td>
        <td>{r.message || "–"}</td>
        <td>
          <button aria-pressed={shown === r.number} onClick={() => setShown(shown === r.number ? undefined : r.number)}>Diff<span class="hidden"> of revision {r.number}</span></button>{" "}
          {may === "operate" && r.number !== newest && <Confirmed label={`Roll back to ${r.number}`} question={`Serve revision ${r.number} again?`}
            act={() => call("POST", `revisions/${r.number}/rollback`, { base: newest })} done={reload} />}
        </td>
      </tr>)}
    </Table>}
    {may !== "operate" && <p class="note">A rollback needs a token with the role operate.</p>}
    {shown !== undefined && <SideBySide number={shown} />}
    <Download path="definitions" name="gatepost.yaml" label="Download the definitions that are served" />
  </>
}

interface Pair { left?: string; right?: string; kind: "same" | "changed" | "head" }

// pairs puts the lines of a unified diff side by side.
function pairs(diff: string): Pair[] {
  const out: Pair[] = []
  let removed: string[] = [], added: string[] = []
  const flush = () => {
    for (let i = 0; i < Math.max(removed.length, added.length); i++) out.push({ left: removed[i], right: added[i], kind: "changed" })
    removed = []
    added = []
  }
  for (const line of diff.split("\n")) {
    if (line.startsWith("--- ") || line.startsWith("@@") || line.startsWith("\\") || line === "") { flush(); continue }
    if (line.startsWith("+++ ")) { flush(); out.push({ left: line.slice(line.indexOf(": ") + 2), kind: "head" }); continue }
    if (line.startsWith("-")) removed.push(line.slice(1))
    else if (line.startsWith("+")) added.push(line.slice(1))
    else { flush(); out.push({ left: line.slice(1), right: line.slice(1), kind: "same" }) }
  }
  flush()
  return out
}

function SideBySide({ number }: { number: number }) {
  const { value, error } = useCall<{ from: number; to: number; diff: string }>(`revisions/${number}/diff`)
  if (!value) return <Failure of={error} />
  if (value.diff === "") return <p class="note">Revisions {value.from} and {value.to} are served in the same way.</p>
  return <div class="scroll" tabIndex={0} role="region" aria-label={`Revision ${value.to} beside ${value.from}`}>
    <table class="diff">
      <caption>Revision {value.to} beside revision {value.from}, with defaults written out</caption>
      <thead><tr><th scope="col">{value.from === 0 ? "before" : `revision ${value.from}`}</th><th scope="col">revision {value.to}</th></tr></thead>
      <tbody>{pairs(value.diff).map((p, i) => p.kind === "head"
        ? <tr key={i}><th scope="rowgroup" colSpan={2}>{p.left}</th></tr>
        : <tr key={i} class={p.kind}>
          <td>{p.kind === "changed" && p.left !== undefined && <del>{p.left}</del>}{p.kind === "same" && p.left}</td>
          <td>{p.kind === "changed" && p.right !== undefined && <ins>{p.right}</ins>}{p.kind === "same" && p.right}</td>
        </tr>)}</tbody>
    </table>
  </div>
}

export function Envoys() {
  const { value, error } = useCall<Status>("status", 2 * seconds)
  return <>
    <Failure of={error} />
    {value && <>
      <Rejected of={value} />
      <p>Version <code>{value.version || "none yet"}</code> of <span class="path">{value.source}</span> was sent <Time of={value.published} />.
        {" "}{value.active !== value.version && (value.active ? <>Last active was <code>{value.active}</code>. </> : "No version has been active yet. ")}
        {value.envoys.filter(e => e.proven && e.acked === value.version).length} of {value.envoys.length} Envoys are verified to serve it. Tokens are
        checked {value.module?.library ? "inside Envoy" : "by Gatepost for each request" + (value.module?.reason ? ": " + value.module.reason : "")}.</p>
      <Table caption="Envoys that are connected" empty="No Envoy is connected." heads={["Envoy", "Acknowledged", "Verified", "Last rejection"]}>
        {value.envoys.map(e => <tr key={e.node + e.address}>
          <th scope="row">{e.node}<small>{e.address === "@" ? "by a Unix socket" : e.address}</small></th>
          <td><code>{e.acked || "–"}</code>{e.acked_at && <small><Time of={e.acked_at} /></small>}</td>
          <td>{e.proven ? <Badge kind="good">yes</Badge> : <Badge kind="warn">{e.doubt || "not yet"}</Badge>}</td>
          <td>{e.last_nack ? <>
            {e.nack ? <Badge kind="bad">rejected</Badge> : <Badge kind="plain">overcome</Badge>} {e.last_nack.reason}
            <small>{e.last_nack.type}{e.last_nack.version && <> of version <code>{e.last_nack.version}</code></>}, <Time of={e.last_nack.at} /></small>
          </> : "–"}</td>
        </tr>)}
      </Table>
    </>}
  </>
}

export function Certificates() {
  const { value, error } = useCall<Certificate[]>("certificates", 10 * seconds)
  return <>
    <Failure of={error} />
    {value && <Table caption="Certificates and CAs of the definitions" empty="The definitions have no certificates." heads={["Certificate", "Served for", "From", "Valid from", "Valid until", "Problem"]}>
      {value.map(c => <tr key={c.name}>
        <th scope="row" class="path">{c.name}{c.ca && <small>CA</small>}</th>
        <td>{c.services.length > 0 ? `upstreams of ${c.services.join(", ")}` : c.ca ? "clients" : [...c.names, ...c.addresses].join(", ") || "–"}</td>
        <td>{c.source === "acme" ? "a CA, by ACME" : "files"}</td>
        <td><Time of={c.not_before} /></td>
        <td><Time of={c.not_after} /> {c.not_after && <Badge kind={c.days_left < 0 ? "bad" : c.expires_soon ? "warn" : "good"}>{c.days_left < 0 ? "expired" : `${c.days_left}\u00a0days\u00a0left`}</Badge>}</td>
        <td>{c.problem ? <><Badge kind="bad">problem</Badge> {c.problem}</> : "–"}</td>
      </tr>)}
    </Table>}
  </>
}

export function Shield({ may }: { may: Overview["may"] }) {
  const [typed, setTyped] = useState("")
  const [user, setUser] = useState("")
  const { value, error, reload } = useCall<{ addresses: Held[]; users: Held[] }>("shield" + (user && "?user=" + encodeURIComponent(user)), 5 * seconds)
  const forgive = (h: Held) => may === "operate"
    ? <Confirmed label="Forgive" question="Forget the failed logins on all gateways?" act={() => call("POST", "shield/forgive", { key: h.key })} done={reload} />
    : "needs a token with the role operate"
  const rows = (all: Held[], name: (h: Held) => string) => all.map(h => <tr key={h.key}>
    <th scope="row">{name(h)}</th><td><Time of={h.until} /></td><td><Time of={h.forgiven} /></td><td>{forgive(h)}</td>
  </tr>)
  return <>
    <form class="row" onSubmit={e => { e.preventDefault(); setUser(typed) }}>
      <label>Login name <input value={typed} onInput={e => setTyped(e.currentTarget.value)} /></label>
      <button class="primary">Find</button>
      <span>Names that were typed are not kept, because they may be passwords. A name that you know is found.</span>
    </form>
    <Failure of={error} />
    {value && <>
      <Table caption="Client addresses whose logins wait" empty="No address waits." heads={["Address", "Waits until", "Failures count until", "Action"]}>{rows(value.addresses, h => h.address ?? h.key)}</Table>
      <Table caption="Users whose logins wait" empty={user ? `${user} does not wait here.` : "No user waits."} heads={["User", "Waits until", "Failures count until", "Action"]}>{rows(value.users, h => user || h.key.slice(0, 8) + "…")}</Table>
    </>}
  </>
}
