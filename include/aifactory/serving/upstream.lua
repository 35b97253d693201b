-- Triton (24.10) answers 500 to a REST body, and INTERNAL to a gRPC message, that it cannot parse. That is the caller's
-- mistake: said so here, before the answer counts as an error of the slot and the request is tried again.
local MISTAKES = {
  "failed to parse the request JSON buffer", "failed to get request params", "Unable to parse", "Unable to set",
}

function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get("grpc-status") == "13" and headers:get("grpc-message") == "Unable to parse request" then
    headers:replace("grpc-status", "3")
  elseif headers:get(":status") == "500" then
    local body = handle:body(true)
    local text = body:getBytes(0, math.min(body:length(), 100))
    for _, mistake in ipairs(MISTAKES) do
      if text:find('^{"error": ?"' .. mistake) then
        return handle:headers():replace(":status", "400")
      end
    end
  end
end
