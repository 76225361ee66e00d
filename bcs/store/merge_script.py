"""The merge law of single registers, as a script that runs inside Redis; the fallback when every commit attempt lost.

`tests/integration` holds it to `bcs.domain.state`: both must give the same state for the same facts.
"""

MERGE_SCRIPT = """
-- KEYS: summary, meta, essays.
-- ARGV: time to live in ms, then for each register: rule, name, phase, value.
local summary, meta, essays = KEYS[1], KEYS[2], KEYS[3]
local JOINED, MARK = 8, 9
local NEVER_JOINED = string.rep('\\255', JOINED)
local NO_MARK = '-' .. string.rep('\\0', MARK - 1)

-- Times are strings, of digits or of bytes: as Lua numbers, those beyond 2^53 would lose digits.
local function compare_digits(a, b)
  if #a ~= #b then
    return #a < #b and -1 or 1
  end
  if a == b then
    return 0
  end
  return a < b and -1 or 1
end

-- Lua compares strings by the server's locale, which knows nothing of bytes.
local function compare_bytes(a, b)
  for position = 1, #a do
    local left, right = string.byte(a, position), string.byte(b, position)
    if left ~= right then
      return left < right and -1 or 1
    end
  end
  return 0
end

local function outweighs(new, old, compare)
  local order = compare(string.sub(new, 2), string.sub(old, 2))
  return order > 0 or (order == 0 and string.sub(new, 1, 1) == 'f' and string.sub(old, 1, 1) ~= 'f')
end

local function is_newer(new, old)
  local new_time, new_count = string.match(new, '^(%d+):(%d+)$')
  local old_time, old_count = string.match(old, '^(%d+):(%d+)$')
  local order = compare_digits(new_time, old_time)
  if order == 0 then
    order = compare_digits(new_count, old_count)
  end
  return order > 0
end

-- First look at everything and only then write: an error on the way must leave nothing half done.
local fields = {}
local slots = 0
local stored = redis.call('HGETALL', meta)
for position = 1, #stored, 2 do
  fields[stored[position]] = stored[position + 1]
  if string.sub(stored[position], 1, 5) == 'slot:' then
    slots = slots + 1
  end
end
local version = fields['version'] or '0'
if not string.match(version, '^%d+$') then
  return redis.error_reply('ERR not a version: ' .. version)
end
local records, meta_writes, essay_writes = {}, {}, {}

local function record_of(essay)
  if not records[essay] then
    records[essay] = redis.call('HGET', essays, essay) or NEVER_JOINED
  end
  return records[essay]
end

local function set_record(essay, record)
  records[essay] = record
  essay_writes[essay] = true
end

local function set_field(name, value)
  fields[name] = value
  meta_writes[name] = true
end

for position = 2, #ARGV, 4 do
  local rule, name, phase, value = ARGV[position], ARGV[position + 1], ARGV[position + 2], ARGV[position + 3]
  if rule == 'newest' then
    if not fields[name] or is_newer(value, fields[name]) then
      set_field(name, value)
    end
  elseif rule == 'batch mark' then
    if not fields[name] or outweighs(value, fields[name], compare_digits) then
      set_field(name, value)
    end
  else
    local record = record_of(name)
    if (#record - JOINED) % MARK ~= 0 then
      return redis.error_reply('ERR a record of ' .. #record .. ' bytes')
    end
    if rule == 'joined' then
      if compare_bytes(value, string.sub(record, 1, JOINED)) < 0 then
        set_record(name, value .. string.sub(record, JOINED + 1))
      end
    else
      local slot = fields['slot:' .. phase]
      if not slot then
        slot = tostring(slots)
        slots = slots + 1
        set_field('slot:' .. phase, slot)
      end
      local before = JOINED + MARK * tonumber(slot)
      if #record <= before then
        record = record .. string.rep(NO_MARK, (before - #record) / MARK + 1)
      end
      local old = string.sub(record, before + 1, before + MARK)
      if old == NO_MARK or outweighs(value, old, compare_bytes) then
        set_record(name, string.sub(record, 1, before) .. value .. string.sub(record, before + MARK + 1))
      end
    end
  end
end
for name in pairs(meta_writes) do
  redis.call('HSET', meta, name, fields[name])
end
for essay in pairs(essay_writes) do
  redis.call('HSET', essays, essay, records[essay])
end
redis.call('HINCRBY', meta, 'version', 1)
redis.call('DEL', summary)
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[1])
end
return 1
"""
