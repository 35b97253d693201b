-- What must be known of a request's body before it may go to a slot.
--
-- gRPC says in the body which model it means, and routes match on headers: this reads the first two fields of the
-- message (model_name, model_version of ModelInferRequest; name, version of ModelMetadataRequest and ModelReadyRequest)
-- into the headers x-line and x-version. Of a stream no first message can be awaited here: its client sends x-line.
--
-- REST: Triton (24.10) allocates what `shape` says before it looks at the data, and recurses into nested JSON without
-- bound. Either ends its process, and a request that is tried again would end both slots.
local SERVICE = "/inference.GRPCInferenceService/"
local UNARY = {[SERVICE .. "ModelInfer"] = true, [SERVICE .. "ModelMetadata"] = true, [SERVICE .. "ModelReady"] = true}
local STREAM = SERVICE .. "ModelStreamInfer"
local MOST_FIELDS, MOST_DEPTH = 10000, 32

-- All that follows reads one string byte by byte, which LuaJIT compiles; a call into Envoy for each field it would not.

local byte = string.byte

-- The varint that begins at byte `at` of `text`, and where the next byte is; nil if it is longer than 10 bytes or cut.
local function varint(text, at)
  local value, scale = 0, 1
  for position = at, at + 9 do
    local char = byte(text, position)
    if not char then return nil end
    value = value + (char % 128) * scale
    if char < 128 then return value, position + 1 end
    scale = scale * 128
  end
  return nil
end

-- Where the next field begins, and where this one's bytes do, for a value of this wire type that begins at byte `at`;
-- nil for what protobuf does not know.
local function extent(wire, text, at)
  if wire == 0 then
    local _, after = varint(text, at)
    return after
  elseif wire == 1 then
    return at + 8
  elseif wire == 2 then
    local length, after = varint(text, at)
    return length and after + length, after
  elseif wire == 5 then
    return at + 4
  end
  return nil
end

-- Fields 1 and 2 of the message that starts at byte `at` (of a field given twice the last counts, as in protobuf).
local function fields(text, at)
  local name, version, count, size = "", "", 0, #text
  while at <= size do
    count = count + 1
    local tag, used = varint(text, at)
    if not tag or tag < 8 or count > MOST_FIELDS then return nil end
    local wire = tag % 8
    local number = (tag - wire) / 8
    local after, start = extent(wire, text, used)
    if not after or after > size + 1 then return nil end
    if number <= 2 then
      if wire ~= 2 then return nil end
      local value = text:sub(start, after - 1)
      if number == 1 then name = value else version = value end
    end
    at = after
  end
  return name, version
end

-- The gateway's local replies make OIP's error object of this, or a gRPC status.
local function refuse(handle, status, message)
  handle:respond({[":status"] = status}, message)
end

-- How many values a shape is of, whose list is to begin at byte `at`, white space apart; 0 if there is no such list.
local function product(text, at)
  local char, found, number = byte(text, at), 1, nil
  while char and char <= 32 do at = at + 1; char = byte(text, at) end
  if char ~= 91 then return 0 end -- [
  while true do
    at = at + 1
    char = byte(text, at)
    if char and char >= 48 and char <= 57 then
      number = (number or 0) * 10 + char - 48
    elseif char == 44 or char == 93 or (char and char <= 32) then -- , ]
      if number then found, number = found * number, nil end
      if char == 93 then return found end
    else
      return 0
    end
  end
end

-- What of this JSON text would hurt a slot; nil if nothing. Whether it is valid JSON is the slot's business: of valid
-- JSON this finds every string, and so every member's name.
local function harm(text)
  local size, at, depth, values = #text, 1, 0, 0
  while at <= size do
    local char = byte(text, at)
    if char == 91 or char == 123 then -- [ {
      depth = depth + 1
      if depth > MOST_DEPTH then return "JSON is nested deeper than " .. MOST_DEPTH end
    elseif char == 93 or char == 125 then -- ] }
      depth = depth - 1
    elseif char == 34 then -- "
      local start, escaped = at + 1, false
      at = start
      while at <= size and byte(text, at) ~= 34 do
        if byte(text, at) == 92 then escaped, at = true, at + 1 end
        at = at + 1
      end
      local stop, after = at - 1, at + 1
      while after <= size and byte(text, after) <= 32 do after = after + 1 end
      if byte(text, after) == 58 then -- : so that the string is a member's name
        if escaped then return "a member's name has an escape sequence" end
        if stop - start == 4 and text:sub(start, stop) == "shape" then
          values = values + product(text, after + 1)
          if not (values <= size) then return "Unable to parse 'shape': it is of more values than the request has bytes" end
        end
      end
    end
    at = at + 1
  end
  return nil
end

local function check_rest(handle)
  local headers = handle:headers()
  if headers:get("content-encoding") then return refuse(handle, "415", "compressed bodies are not taken here") end
  local told, several = headers:get("inference-header-content-length"), nil
  several = told and headers:getNumValues("inference-header-content-length") > 1
  local body = handle:body(true)
  local size = told and told:find("^%d+$") and tonumber(told) or body:length()
  if several or size > body:length() or (told and not told:find("^%d+$")) then
    return refuse(handle, "400", "Inference-Header-Content-Length is not the length of the JSON part of the body")
  end
  local found = size > 0 and harm(body:getBytes(0, size))
  if found then refuse(handle, "400", found) end
end

local function check_grpc(handle)
  local body = handle:body(true)
  local size = body:length()
  local text = size >= 5 and body:getBytes(0, size) or ""
  local flag, b1, b2, b3, b4 = byte(text, 1, 5)
  if flag == 1 then return refuse(handle, "415", "compressed messages are not taken here") end
  local length = flag == 0 and ((b1 * 256 + b2) * 256 + b3) * 256 + b4
  local name, version
  if length == size - 5 then name, version = fields(text, 6) end
  if not name then return refuse(handle, "400", "the body is not one message of the inference protocol") end
  if not name:find("^[%w_%-]+$") then return refuse(handle, "400", "model_name is empty or not a name") end
  if not version:find("^%d*$") then return refuse(handle, "400", "model_version is not a number") end
  handle:headers():add("x-line", name)
  if version ~= "" then handle:headers():add("x-version", version) end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  if path == STREAM then
    if not headers:get("x-line") then refuse(handle, "400", "a stream says by the metadata x-line which model it is for") end
    return
  end
  headers:remove("x-line")
  headers:remove("x-version")
  if path:find("^/v2/models/.*/infer") then return check_rest(handle) end
  if UNARY[path] then return check_grpc(handle) end
end
