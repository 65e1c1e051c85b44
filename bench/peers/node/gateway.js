// The gateway that Gatepost replaces, written anew from its description: http-proxy, and one Redis key per token.
// What it does is told in README.md's "What it replaces"; its slips are mended where they cost no request anything.
//
// The settings come as one JSON argument: {"listen": 5500, "redis": "redis://…", "keepAlive": false,
// "authenticationServiceUrl": "http://…", "origins": [], "services": [{"name", "path", "authenticate",
// "allowedMethods", "upStream"}]}. keepAlive is the fix of one line: without it, http-proxy opens a connection to the
// service for each request, as the gateway did.
'use strict'

const http = require('node:http')
const { randomUUID } = require('node:crypto')
const httpProxy = require('http-proxy')
const { createClient } = require('redis')

const settings = JSON.parse(process.argv[2])
const lifetime = 3600
const notAllowed = 'You are not allowed to access this API!'
const headersAllowed = 'Authorization,Content-Type,Accept'

const tokens = createClient({ url: settings.redis })
const proxy = httpProxy.createProxyServer(
  settings.keepAlive ? { agent: new http.Agent({ keepAlive: true }) } : {})
proxy.on('error', (err, req, res) => {
  if (!res.headersSent) res.writeHead(502)
  res.end()
})

function answer (res, status, text) {
  const body = JSON.stringify(text)
  res.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) })
  res.end(body)
}

function cors (req, res, methods) {
  if (!req.headers.origin) return
  res.setHeader('Access-Control-Allow-Origin', req.headers.origin)
  res.setHeader('Access-Control-Allow-Methods', methods)
  res.setHeader('Access-Control-Allow-Headers', headersAllowed)
}

// serviceOf returns the first service whose path the lower-cased URL starts with.
function serviceOf (url) {
  const lower = url.toLowerCase()
  return settings.services.find(service => lower.startsWith(service.path))
}

async function toService (req, res) {
  const service = serviceOf(req.url)
  if (!service) return answer(res, 404, 'Could not find any resources for given path.')
  cors(req, res, service.allowedMethods.join(','))
  if (req.method !== 'OPTIONS' && !service.allowedMethods.includes(req.method)) return answer(res, 405, 'Method not allowed')
  if (service.authenticate) {
    const token = req.headers.authorization
    if (!token || await tokens.get(token) === null) return answer(res, 401, notAllowed)
  }
  if (req.method === 'OPTIONS') return res.end()
  const rest = req.url.slice(service.path.length)
  req.url = rest.startsWith('/') ? rest : '/' + rest
  proxy.web(req, res, { target: service.upStream })
}

// login sends the request on as it is, and adds a token to a 200 that names a user.
function login (req, res) {
  cors(req, res, 'POST')
  if (req.method === 'OPTIONS') return res.end()
  const target = new URL('/users/authenticate', settings.authenticationServiceUrl)
  const outbound = http.request(target, { method: req.method, headers: { ...req.headers, host: target.host } }, async inbound => {
    const headers = { ...inbound.headers }
    delete headers.connection
    delete headers['keep-alive']
    if (inbound.statusCode === 200) {
      if (!headers.userid) {
        inbound.resume()
        return answer(res, 401, notAllowed)
      }
      const token = randomUUID()
      try {
        await tokens.setEx(token, lifetime, '1')
      } catch {
        inbound.resume()
        return answer(res, 500, 'internal error')
      }
      Object.assign(headers, { token, expires_in: lifetime, 'Access-Control-Expose-Headers': 'token,expires_in,userid' })
    }
    res.writeHead(inbound.statusCode, headers)
    inbound.pipe(res)
  })
  outbound.on('error', () => { if (!res.headersSent) answer(res, 502, 'Bad gateway') })
  req.pipe(outbound)
}

async function handle (req, res) {
  if (settings.origins.length > 0 && !settings.origins.includes(req.headers.origin)) return answer(res, 401, notAllowed)
  if (req.url.toLowerCase().startsWith('/token')) return login(req, res)
  await toService(req, res)
}

tokens.on('error', err => console.error(err.message))
tokens.connect().then(() => {
  http.createServer((req, res) => {
    handle(req, res).catch(err => {
      console.error(err.message)
      if (!res.headersSent) answer(res, 500, 'internal error')
    })
  }).listen(settings.listen, '127.0.0.1')
})
