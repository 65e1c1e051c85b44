-- Leases: each worker of Envoy remembers a decision of Gatepost's for as long as Gatepost said, and lets a request of
-- which everything that the decision was made from is the same pass by it. This text is the same in every gateway; what
-- differs from route to route comes with the route: its name, in which the rule is named, and its context.
--
-- What must hold: a decision is used no later than the time that it was given for, counted from the moment at which the
-- request that it was made for had arrived here. Whatever is in doubt is left to Gatepost.

local NAMESPACE = "gatepost.lease"              -- of the metadata that this filter sets; no client can
local ANSWER = "envoy.filters.http.ext_authz"   -- of the metadata that comes with Gatepost's answer
local LONGEST = 1000                            -- milliseconds; a longer lease is cut to it
local MOST = 8192                               -- decisions in a generation, and requests that may bring one
local MOST_BYTES = 1024                         -- of a key
local MOST_USER_BYTES = 256                     -- of a user's id
local MOST_RULES = 65536
local MOST_RENEWED, MOST_RENEWED_BYTES = 128, 8192 -- decisions that one question is about beside its own, and what is said of them
local MOST_LOOKED, LOOK_EVERY = 512, 50         -- decisions of a rule and a generation that are looked at for them, and how often, in milliseconds
local SPREAD = 0.25                             -- of a lease: what is renewed together does not end together
local GARBAGE = 1024                            -- KiB that may come up before it is collected, but no more than nine times what is in use,
local BARE, EACH = 64, 0.5                      -- which is so much, and so much for each decision, request or rule that is kept

-- A generation takes what comes in for LONGEST, and is there to be asked for as long again; then all in it has ended.
-- So nothing is searched for what has ended, and memory is bounded whatever clients send.
local young, old = {}, {}                       -- :: rule -> key -> decision
local kept = 0                                  -- in young
local waiting, waited = {}, {}                  -- :: number -> request that Gatepost is asked about, in two generations as well
local asking, asked = 0, 0                      -- how many are in them
local turns = 0                                 -- when the next generation begins
local number = 0
local rules, ruled = {}, 0                      -- :: rule -> what its routes say, and when its decisions are looked through again
local hits = {}                                 -- :: service -> hits that Gatepost has not been told of
local latest = 0                                -- what the wall clock last showed

-- The two clocks, in milliseconds. The one that counts from the start of the machine cannot be set, and goes on while it
-- sleeps; the wall clock goes on where the whole machine was held. Where they cannot be read there are no leases.
local have_ffi, ffi = pcall(require, "ffi")
if have_ffi and ffi.os == "Linux" then
  ffi.cdef [[
    typedef struct { long seconds, nanoseconds; } gatepost_time;
    int clock_gettime(int clock, gatepost_time *time);
  ]]
  local REALTIME, BOOTTIME = 0, 7
  local time = ffi.new("gatepost_time")
  local function read(clock)
    if ffi.C.clock_gettime(clock, time) ~= 0 then return nil end
    return tonumber(time.seconds) * 1000 + tonumber(time.nanoseconds) / 1e6
  end
  function gatepost_clocks() return read(BOOTTIME), read(REALTIME) end
else
  function gatepost_clocks() return nil end
end

local function forget()
  young, old, kept = {}, {}, 0
  waiting, waited, asking, asked = {}, {}, 0, 0
end

local function next_generation(now)
  -- Lua's own measure is to collect when what is in use has doubled; where that is little, it is an eighth of what a hit costs.
  local used = BARE + EACH * (kept + asking + asked + ruled)
  collectgarbage("setpause", math.max(200, math.min(1000, 100 + 100 * GARBAGE / used)))
  old, young, kept = young, {}, 0
  waited, waiting, asked, asking = waiting, {}, asking, 0
  turns = now + LONGEST
end

-- rule_of returns what the routes with a rule say. A route's name names the content of its rule, so it is read once.
local function rule_of(name, handle)
  local rule = rules[name]
  if rule then return rule end
  if ruled >= MOST_RULES then rules, ruled = {}, 0 end
  local context = handle:filterContext()
  rule = {
    service = context:get("service"),
    user_header = context:get("user_header"),
    forward_token = context:get("forward_token"),
    inputs = context:get("inputs") or {},
    look = 0,
  }
  rules[name], ruled = rule, ruled + 1
  return rule
end

-- key_of returns what a decision is made from beside the rule: the credentials, and the other headers that count. No value
-- of a header has a line break in it.
local function key_of(rule, headers, credentials)
  local key = credentials
  for _, header in ipairs(rule.inputs) do
    key = key .. "\n" .. (headers:get(header) or "")
  end
  return key
end

-- recall returns the decision that is kept of a rule and a key.
local function recall(name, key)
  local decisions = young[name]
  local decision = decisions and decisions[key]
  if decision then return decision end
  decisions = old[name]
  return decisions and decisions[key]
end

-- keep keeps a decision, where there is room.
local function keep(name, key, decision)
  local decisions = young[name]
  if not decisions or not decisions[key] then
    if kept >= MOST then return end
    kept = kept + 1
  end
  if not decisions then
    decisions = {}
    young[name] = decisions
  end
  decisions[key] = decision
end

-- renewable returns what else a question about a rule is to be about: decisions by which a request has passed and half of
-- whose time is over, and what Gatepost is told of each: from where that request came, and the key. So a worker asks for all
-- of them once, not once for each.
local function renewable(name, rule, now)
  if now < rule.look then return end
  rule.look = now + LOOK_EVERY
  local decisions, said, bytes = {}, {}, 0
  for _, generation in ipairs { old, young } do
    local looked = 0
    for key, decision in pairs(generation[name] or {}) do
      if looked >= MOST_LOOKED or #said >= MOST_RENEWED or bytes >= MOST_RENEWED_BYTES then break end
      looked = looked + 1
      if decision.used and now >= decision.half and now < decision.ends and recall(name, key) == decision then
        local from = decision.used
        decision.used = nil
        decisions[#decisions + 1] = decision
        said[#said + 1] = from .. "\n" .. key
        bytes = bytes + #said[#said]
      end
    end
  end
  if #said > 0 then return decisions, said end
end

-- address returns from where the client of a request calls, without the port.
local function address(info)
  local direct = info:downstreamDirectRemoteAddress()
  return string.match(direct, "^%[?(.-)%]?:%d+$") or direct
end

function envoy_on_request(handle)
  local info = handle:streamInfo()
  local name = info:routeName()
  local headers = handle:headers()
  local credentials = headers:get("authorization")
  if not credentials or credentials == "" then return end
  local now, wall = gatepost_clocks()
  if not now or not wall then return end
  if wall < latest then forget() end -- the clock was set back
  latest = wall
  if now >= turns then next_generation(now) end

  local rule = rule_of(name, handle)
  local key = key_of(rule, headers, credentials)
  local decision = recall(name, key)
  if decision and now < decision.ends and wall < decision.wall then
    -- The mark comes last: were anything before it to fail, Gatepost would be asked.
    headers:replace(rule.user_header, decision.user)
    if not rule.forward_token then headers:remove("authorization") end
    if decision.dies then
      headers:replace("x-envoy-upstream-stream-duration-ms", string.format("%d", math.ceil(decision.dies - now)))
    end
    info:dynamicMetadata():set(NAMESPACE, "hit", true)
    if decision.plain and not decision.used then decision.used = address(info) end -- to be renewed, and as a use from there
    hits[rule.service] = (hits[rule.service] or 0) + 1
    return
  end

  if asking >= MOST or #key > MOST_BYTES then return end
  number = number + 1
  local request, ask = { rule = name, key = key, now = now, wall = wall }, { number = number }
  -- Only who was let pass a moment ago asks for others: a stranger is told nothing of them, and takes nobody's turn.
  if decision then request.renew, ask.renew = renewable(name, rule, now) end
  waiting[number], asking = request, asking + 1
  if next(hits) then ask.hits, hits = hits, {} end
  info:dynamicMetadata():set(NAMESPACE, "ask", ask)
end

-- take returns the request of a number, once.
local function take(n)
  local request = waiting[n]
  if request then
    waiting[n], asking = nil, asking - 1
    return request
  end
  request = waited[n]
  if request then
    waited[n], asked = nil, asked - 1
  end
  return request
end

-- remember keeps what Gatepost has said with the answer to a request: of it, or of another decision of its rule. That is used for a
-- part of its lease, or all of it.
local function remember(request, of, said, part)
  if not said or not said.lease or #said.user > MOST_USER_BYTES then return end
  local lease = math.min(said.lease, LONGEST) * part
  keep(request.rule, of.key, {
    key = of.key,
    plain = not string.find(of.key, "[^\t\n -~]"), -- what is no UTF-8 would make the question unreadable that it is named in
    user = said.user,
    half = request.now + lease / 2,
    ends = request.now + lease,
    wall = request.wall + lease,
    dies = said.left and request.now + said.left, -- the token; the router bounds the stream by it
  })
end

function envoy_on_response(handle)
  if asking + asked == 0 then return end
  local metadata = handle:streamInfo():dynamicMetadata()
  local mine = metadata:get(NAMESPACE)
  if not mine or not mine.ask then return end
  local request = take(mine.ask.number)
  if not request then return end
  local answer = metadata:get(ANSWER) -- a denial has none
  if not answer then return end
  remember(request, request, answer, 1)
  if not request.renew then return end
  metadata:set(NAMESPACE, "ask", true) -- others' tokens stay no longer than they must: a stream may last for hours
  if not answer.renewed then return end
  metadata:set(ANSWER, "renewed", true)
  for i, decision in ipairs(request.renew) do
    remember(request, decision, answer.renewed[i], 1 - SPREAD * i / #request.renew)
  end
end
