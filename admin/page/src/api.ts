// Calls of the admin API. The types are those of openapi.yaml.

export interface Overview {
  gatepost_version: string; now: string; ready: boolean; checks: Record<string, string>; version: string; source: string
  services: number; envoys: number; verified: number; decisions: Record<string, number>; logins: Record<string, number>
  in_envoy: boolean; from_memory: boolean; caller?: string; may: "read" | "end" | "operate"
}
export interface EnvoyStatus {
  node: string; address: string; acked: string; acked_at: string | null; nack: string; nacked_at: string | null
  nack_type: string; proven: boolean; serving: string; doubt: string
  last_nack: { reason: string; type: string; version: string; at: string | null } | null
}
export interface Listener {
  protocol: "http" | "https" | "http3"; address: string; redirect: boolean; min_version: string; client_certificates: string
  proxy_protocol: boolean; problem: string
}
export interface Status {
  version: string; active: string; source: string; published: string | null; rejected: string; envoys: EnvoyStatus[]; withheld: string[]
  module: { library: string; reason: string } | null; listeners: Listener[]
}
export interface Certificate {
  name: string; names: string[]; addresses: string[]; source: "files" | "acme"; ca: boolean; not_before: string | null; not_after: string | null
  days_left: number; expires_soon: boolean; problem: string; services: string[]
}
export interface Upstream {
  address: string; name?: string; canary?: boolean; health: "healthy" | "unhealthy" | "resting" | "unchecked"; requests: number; errors: number
}
export interface Service {
  name: string; path: string; hosts?: string[]; methods: string[]; public: boolean; scopes?: string[]; upstreams: Upstream[]
  file: string; line: number; state: "served" | "former" | "withheld"; last_request?: string; canary_percent?: number; limits_reached?: string[]; no_address?: string[]
}
export interface Services { services: Service[]; unknown?: string }
export interface Denial {
  time: string; service: string; decision: string; reason: string; request_id: string; method: string; host: string; path: string
  origin?: string; client: string; token?: string
}
export interface Field { name: string; value: string }
export interface Outcome {
  when?: string; reason: string; status?: number; headers?: Field[]; body?: string; why: string; change?: string; see?: string
  forward?: { to?: string[]; token_handler?: boolean; method: string; path: string; set?: Field[]; removed?: string[] }
}
export interface Explanation {
  version: string; method: string; target: string; host?: string; path?: string; route?: string; unsure?: string[]
  service?: { name: string; file: string; line: number; path: string; public: boolean; methods: string[] }
  steps: { part: string; says: string }[]; outcomes: Outcome[]
}
export interface Session {
  id: string; user: string; scopes?: string[]; issued: string; expires: string; last_seen?: string; last_address?: string
  client_address?: string; user_agent?: string
}
export interface Revision { number: number; stored: string; who: string; message?: string; change: string; sha256: string }
export interface Held { key: string; address?: string; until: string; forgiven: string }

const key = "gatepost-token"

export const hasToken = () => sessionStorage.getItem(key) !== null

export function setToken(token: string) {
  if (token === "") sessionStorage.removeItem(key)
  else sessionStorage.setItem(key, token)
}

export class Refused extends Error {
  constructor(readonly status: number, message: string) { super(message) }
}

async function send(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {}
  const token = sessionStorage.getItem(key)
  if (token !== null) headers["Authorization"] = "Bearer " + token
  if (body !== undefined) headers["Content-Type"] = "application/json"
  const response = await fetch(path.startsWith("/") ? path : "/api/v1/" + path, {
    method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store", redirect: "error",
  }).catch(e => { throw signal?.aborted ? e : new Error("The gateway does not respond.") })
  if (!response.ok) {
    const text = await response.text()
    let message = text
    try { message = (JSON.parse(text) as { error: string }).error } catch { /* not of the API */ }
    throw new Refused(response.status, message || response.statusText)
  }
  return response
}

export async function call<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  return await (await send(method, path, body, signal)).json() as T
}

// signIn exchanges the code of a link for a token, and returns what is wrong, if anything. The code is taken out of the
// address at once. It works once, and a token in the address is not taken: a planted link signs nobody in.
export async function signIn(): Promise<string | undefined> {
  const code = /^#code=(\w+)$/.exec(location.hash)?.[1]
  if (code === undefined) return undefined
  history.replaceState(null, "", location.pathname + "#/")
  const before = sessionStorage.getItem(key) ?? ""
  try {
    setToken("") // it may have expired, and then every call with it is refused
    setToken((await call<{ token: string }>("POST", "exchange", { code })).token)
    return undefined
  } catch (e) {
    setToken(before)
    return e instanceof Error ? e.message : String(e)
  }
}

// follow calls each with every denial until the signal ends it. It throws if the stream ends otherwise.
export async function follow(signal: AbortSignal, opened: () => void, each: (d: Denial) => void) {
  const reader = (await send("GET", "denials/live", undefined, signal)).body!.pipeThrough(new TextDecoderStream()).getReader()
  opened()
  for (let rest = ""; ;) {
    const { done, value } = await reader.read()
    if (done) throw new Error("the gateway has ended the stream")
    const lines = (rest + value).split("\n")
    rest = lines.pop()!
    for (const line of lines) if (line !== "") each(JSON.parse(line) as Denial)
  }
}

// download saves what a call returns as a file.
export async function download(path: string, name: string) {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(await (await send("GET", path)).blob())
  link.download = name
  link.click()
  URL.revokeObjectURL(link.href)
}
