-- Triton (24.10) answers 500 to a REST body, and INTERNAL to a gRPC message, that it cannot parse. That is the caller's
-- mistake: said so here, before the answer counts as an error of the slot and the request is tried again.
local MISTAKES = {
  '^{"error": ?"failed to parse the request JSON buffer', '^{"error": ?"failed to get request params',
  '^{"error": ?"Unable to parse', '^{"error": ?"Unable to set',
}

-- What a server says of a model that it has not, here Triton's words and then the plant's own. The gateway asks it only
-- for lines that it is to serve, so it has just come back and is not filled yet: unavailable, which is tried elsewhere.
local EMPTY = {"unknown model: '[^']*' is not found", "model '[^']*' is not found: it is unknown or not loaded"}

local function any(patterns, text)
  for _, pattern in ipairs(patterns) do
    if text:find(pattern) then return true end
  end
  return false
end

local function words(handle)
  local body = handle:body(true)
  return body:getBytes(0, math.min(body:length(), 200))
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status, code = headers:get(":status"), headers:get("grpc-status")
  if status == "200" and not code then return end
  local message = headers:get("grpc-message") or ""
  if code == "13" and message == "Unable to parse request" then
    headers:replace("grpc-status", "3")
  elseif code == "5" and any(EMPTY, message) then
    headers:replace("grpc-status", "14")
  elseif status == "404" and any(EMPTY, words(handle)) then
    handle:headers():replace(":status", "503")
  elseif status == "500" and any(MISTAKES, words(handle)) then
    handle:headers():replace(":status", "400")
  end
end
