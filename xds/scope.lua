-- Scopes: Envoy looks for a request's routes by the first segment of its path, to the letter. For a request that it finds no
-- route for in this way, this filter tries what is left: the segment in small letters, then the scope of all other paths.
-- It stands in the listener twice and each time tries one of them, for it can ask for a request's route but once.
-- A request that has a route never comes here. This text is the same in every gateway, nothing of the definitions is in it,
-- and it chooses a scope and no more: the scope's own routes still match the whole path, and bear the rule.

local SCOPE = "x-gatepost-scope" -- the header by which Envoy looks; what a client says in it has been overwritten

function envoy_on_request(handle)
  local info = handle:streamInfo()
  if info:routeName() ~= "" then return end -- found the first time
  local headers = handle:headers()
  local path = headers:get(":path")
  local segment = path and string.match(path, "^/([^/?]*)")
  if not segment then return end -- no path, no route: Envoy answers 404
  local scope = "/" .. string.lower(segment)
  if headers:get(SCOPE) == scope then scope = "/" end -- looked for there already
  headers:replace(SCOPE, scope)
  handle:clearRouteCache()
  local says = handle:metadata() -- asks for the route
  -- Envoy refuses an upgrade by the route that it finds first. Where it found none it has refused nothing, and no other
  -- filter asks what the connection is to become: a route that takes WebSockets takes nothing else.
  local upgrade = headers:get("upgrade")
  if info:routeName() ~= "" and upgrade and not (says:get("websocket") and string.lower(upgrade) == "websocket") then
    handle:respond({ [":status"] = "403" }, nil)
  end
end
