"""The merge law of single registers, as a script that runs inside Redis; the fallback when every commit attempt lost.

`tests/integration` holds it to `bcs.domain.state`: both must give the same state for the same facts.
"""

MERGE_SCRIPT = """
-- KEYS: summary, meta, known, then one hash of marks per phase.
-- ARGV: time to live in ms, then for each register: position of its key, rule, field, value.

-- Times are decimal strings: as Lua numbers, those beyond 2^53 would lose digits.
local function compare(a, b)
  if #a ~= #b then
    return #a < #b and -1 or 1
  end
  if a == b then
    return 0
  end
  return a < b and -1 or 1
end

local rules = {}

function rules.mark(new, old)
  local order = compare(string.sub(new, 2), string.sub(old, 2))
  return order > 0 or (order == 0 and string.sub(new, 1, 1) == 'f' and string.sub(old, 1, 1) ~= 'f')
end

function rules.oldest(new, old)
  return compare(new, old) < 0
end

function rules.newest(new, old)
  local new_time, new_count = string.match(new, '^(%d+):(%d+)$')
  local old_time, old_count = string.match(old, '^(%d+):(%d+)$')
  local order = compare(new_time, old_time)
  if order == 0 then
    order = compare(new_count, old_count)
  end
  return order > 0
end

-- First look at everything and only then write: an error on the way must leave nothing half done.
local writes = {}
for position = 2, #ARGV, 4 do
  local key = KEYS[tonumber(ARGV[position])]
  local wins = rules[ARGV[position + 1]]
  local field, value = ARGV[position + 2], ARGV[position + 3]
  local old = redis.call('HGET', key, field)
  if not old or wins(value, old) then
    writes[#writes + 1] = {key, field, value}
  end
end
local version = redis.call('HGET', KEYS[2], 'version') or '0'
if not string.match(version, '^%d+$') then
  return redis.error_reply('ERR not a version: ' .. version)
end
for _, write in ipairs(writes) do
  redis.call('HSET', unpack(write))
end
redis.call('HINCRBY', KEYS[2], 'version', 1)
redis.call('DEL', KEYS[1])
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[1])
end
return 1
"""
