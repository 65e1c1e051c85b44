import { render } from "preact"
import { useEffect, useRef, useState } from "preact/hooks"
import { download, hasToken, setToken, signIn, type Overview } from "./api"
import { Certificates, Denials, Envoys, Explain, Home, Revisions, Services, Sessions, Shield } from "./pages"
import { Failure, text, useCall } from "./ui"

const pages = [
  ["", "Overview"], ["services", "Services"], ["denials", "Denials"], ["explain", "Explain"], ["sessions", "Sessions"],
  ["revisions", "Revisions"], ["envoys", "Envoys"], ["certificates", "Certificates"], ["shield", "Held logins"],
] as const

function place() {
  const [page = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?")
  return { page, query: new URLSearchParams(query), all: location.hash }
}

function App({ problem }: { problem: string | undefined }) {
  const [at, setAt] = useState(place)
  const [needed, setNeeded] = useState(false)
  const [round, setRound] = useState(0)
  const heading = useRef<HTMLHeadingElement>(null)
  const overview = useCall<Overview>("overview", 2000)
  useEffect(() => {
    const moved = () => setAt(place())
    const need = () => setNeeded(true)
    addEventListener("hashchange", moved)
    addEventListener("token-needed", need)
    return () => { removeEventListener("hashchange", moved); removeEventListener("token-needed", need) }
  }, [])
  const shown = useRef(at.all)
  useEffect(() => {
    if (shown.current !== at.all) heading.current?.focus() // it is new, as all of main
    shown.current = at.all
  }, [at.all])
  const title = pages.find(([path]) => path === at.page)?.[1] ?? "Overview"
  useEffect(() => { document.title = title + " – Gatepost" }, [title])
  const may = overview.value?.may ?? "read"
  const signed = (token: string) => { setToken(token); setNeeded(false); setRound(r => r + 1); overview.reload() }
  return <>
    <a class="skip" href="#main" onClick={e => { e.preventDefault(); heading.current?.focus() }}>Skip to the content</a>
    <header>
      <strong>Gatepost</strong>
      <nav aria-label="Pages">{pages.map(([path, name]) =>
        <a key={path} href={"#/" + path} aria-current={title === name ? "page" : undefined}>{name}</a>)}</nav>
      <Token caller={overview.value?.caller} may={may} needed={needed} signed={signed} />
    </header>
    <main id="main" key={round + at.all}>
      <h1 ref={heading} tabIndex={-1}>{title}</h1>
      <Failure of={hasToken() ? undefined : problem} />
      {title === "Overview" && <Home overview={overview.value} error={overview.error} />}
      {title === "Services" && <Services />}
      {title === "Denials" && <Denials />}
      {title === "Explain" && <Explain query={at.query} />}
      {title === "Sessions" && <Sessions may={may} />}
      {title === "Revisions" && <Revisions may={may} />}
      {title === "Envoys" && <Envoys />}
      {title === "Certificates" && <Certificates />}
      {title === "Held logins" && <Shield may={may} />}
    </main>
    <footer>Gatepost {overview.value?.gatepost_version} · <File path="/api/v1/openapi.yaml">API</File> · <File path="/metrics">metrics</File></footer>
  </>
}

// File is a link to a file that may need the token, which a browser does not send for a link: then it is saved.
function File({ path, children }: { path: string; children: string }) {
  const [error, setError] = useState<string>()
  const save = (e: Event) => {
    if (!hasToken()) return
    e.preventDefault()
    download(path, "gatepost-" + path.split("/").at(-1)).then(() => setError(undefined), e => setError(text(e)))
  }
  return <><a href={path} onClick={save}>{children}</a><Failure of={error} /></>
}

// Token takes the token of an operator. It is kept until the tab is closed.
function Token({ caller, may, needed, signed }: { caller: string | undefined; may: Overview["may"]; needed: boolean; signed: (token: string) => void }) {
  const [typed, setTyped] = useState("")
  const [open, setOpen] = useState(false)
  if (hasToken() && !needed) {
    return <div class="token">{caller}, may {may} <button onClick={() => signed("")}>Sign out</button></div>
  }
  if (!open && !needed) return <div class="token"><button onClick={() => setOpen(true)}>Use a token</button></div>
  return <form class="token" onSubmit={e => { e.preventDefault(); setOpen(false); signed(typed.trim()); setTyped("") }}>
    <label>Token of --admin-token-file <input type="password" autocomplete="off" value={typed} onInput={e => setTyped(e.currentTarget.value)} required /></label>
    <button class="primary">Use</button>
    {needed && <span role="alert">{hasToken() ? "The token was refused." : "This address needs a token."}</span>}
  </form>
}

void signIn().then(problem => render(<App problem={problem} />, document.getElementById("app")!))
