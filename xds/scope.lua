-- Scopes: Envoy looks for a request's routes by the first segment of its path, to the letter. For a request that it finds no
-- route for in this way, this filter tries what is left: the segment in small letters, then the scope of all other paths.
-- A request that has a route never comes here. This text is the same in every gateway, nothing of the definitions is in it,
-- and it chooses a scope and no more: the scope's own routes still match the whole path, and bear the rule.

local SCOPE = "x-gatepost-scope" -- the header by which Envoy looks; what a client says in it has been overwritten

-- enter looks for a route in the scope of a segment.
local function enter(handle, headers, segment)
  headers:replace(SCOPE, "/" .. segment)
  handle:clearRouteCache()
  handle:metadata() -- asks for the route, without which its name would not be known yet
  return handle:streamInfo():routeName() ~= ""
end

function envoy_on_request(handle)
  local headers = handle:headers()
  -- Whether a route takes WebSockets, Envoy asks of the one that it finds first, and of none it asks nothing.
  if headers:get("upgrade") then
    handle:respond({ [":status"] = "403" }, nil)
    return
  end
  local path = headers:get(":path")
  local segment = path and string.match(path, "^/([^/?]*)")
  if not segment then return end -- no path, no route: Envoy answers 404
  if enter(handle, headers, string.lower(segment)) then return end
  enter(handle, headers, "")
end
