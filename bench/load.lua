-- What wrk sends: the requests of the file that is its argument, in turn, and what it tells at the end, as JSON.
local requests, at = {}, 0

function init(args)
  local load = dofile(args[1])
  for i, value in ipairs(load.values) do
    local headers = {}
    for k, v in pairs(load.headers) do headers[k] = v end
    if load.header ~= "" then headers[load.header] = value end
    requests[i] = wrk.format(load.method, load.path, headers, load.body ~= "" and load.body or nil)
  end
  math.randomseed(load.seed)
  at = math.random(#requests)
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"microseconds":%d,"bad_status":%d,"broken":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
