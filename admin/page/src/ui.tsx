// The parts that the pages share.
import type { ComponentChildren } from "preact"
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks"
import { call, Refused } from "./api"

export interface Loaded<T> { value?: T; error?: string; reload: () => void }

// useCall gets a path now, and again every so many milliseconds (0: never).
export function useCall<T>(path: string, every = 0): Loaded<T> {
  const [state, setState] = useState<{ path: string; value?: T; error?: string }>({ path })
  const [round, setRound] = useState(0)
  useEffect(() => {
    const abort = new AbortController()
    const get = async () => {
      if (document.hidden) return
      try {
        setState({ path, value: await call<T>("GET", path, undefined, abort.signal) })
      } catch (e) {
        if (abort.signal.aborted) return
        setState(s => ({ path, value: s.path === path ? s.value : undefined, error: text(e) }))
        if (e instanceof Refused && e.status === 401) dispatchEvent(new Event("token-needed"))
      }
    }
    void get()
    const timer = every > 0 ? setInterval(get, every) : undefined
    return () => { abort.abort(); clearInterval(timer) }
  }, [path, every, round])
  const reload = useCallback(() => setRound(r => r + 1), [])
  return state.path === path ? { value: state.value, error: state.error, reload } : { reload }
}

export const text = (e: unknown) => e instanceof Error ? e.message : String(e)

export function Failure({ of }: { of: string | undefined }) {
  return of ? <p class="bad note" role="alert">{of}</p> : null
}

export function Time({ of }: { of: string | null | undefined }) {
  if (!of) return <>–</>
  const at = new Date(of)
  return <time dateTime={of} title={of}>{at.toDateString() === new Date().toDateString() ? at.toLocaleTimeString() : at.toLocaleString()}</time>
}

export function Badge({ kind, children }: { kind: "good" | "bad" | "warn" | "plain"; children: ComponentChildren }) {
  return <span class={"badge " + kind}>{children}</span>
}

export function Table({ caption, heads, children, empty }: { caption: string; heads: string[]; children: ComponentChildren[]; empty: string }) {
  const body = useRef<HTMLTableSectionElement>(null)
  // On a narrow screen each cell is a line with the name of its column (style.css), and still a part of a table.
  useLayoutEffect(() => {
    for (const row of body.current?.rows ?? []) {
      row.setAttribute("role", "row")
      for (const [i, cell] of [...row.cells].entries()) {
        cell.setAttribute("role", cell.tagName === "TH" ? "rowheader" : "cell")
        cell.dataset["head"] = heads[i]
      }
    }
  })
  if (children.length === 0) return <p class="note">{empty}</p>
  return <div class="scroll" tabIndex={0} role="region" aria-label={caption}>
    <table class="rows" role="table">
      <caption>{caption}</caption>
      <thead role="rowgroup"><tr role="row">{heads.map(h => <th scope="col" role="columnheader" key={h}>{h}</th>)}</tr></thead>
      <tbody role="rowgroup" ref={body}>{children}</tbody>
    </table>
  </div>
}

// Confirmed is a button that asks before it acts, in place. The focus goes to the answer, and back.
export function Confirmed({ label, question, act, done }: { label: string; question: string; act: () => Promise<unknown>; done: () => void }) {
  const [asked, setAsked] = useState(false)
  const [error, setError] = useState<string>()
  const button = useRef<HTMLButtonElement>(null)
  const first = useRef(true)
  useEffect(() => {
    if (!first.current) button.current?.focus()
    first.current = false
  }, [asked])
  const go = async () => {
    setAsked(false)
    try { await act(); setError(undefined); done() } catch (e) { setError(text(e)) }
  }
  return <span class="confirm" onKeyDown={e => { if (e.key === "Escape") setAsked(false) }}>
    {asked
      ? <>{question} <button key="yes" ref={button} class="danger" onClick={go}>Yes</button> <button onClick={() => setAsked(false)}>No</button></>
      : <button key="ask" ref={button} onClick={() => setAsked(true)}>{label}</button>}
    <Failure of={error} />
  </span>
}

// Spark draws counts as a line. Its last value stands beside it as text.
export function Spark({ values, label }: { values: number[]; label: string }) {
  const most = Math.max(1, ...values)
  const points = values.map((v, i) => `${(i / Math.max(1, values.length - 1)) * 100},${24 - (v / most) * 22}`).join(" ")
  return <svg class="spark" viewBox="0 0 100 25" preserveAspectRatio="none" role="img" aria-label={label}>
    <polyline points={points} fill="none" />
  </svg>
}
