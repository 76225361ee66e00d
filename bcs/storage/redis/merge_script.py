"""The merge rules of single registers as a script inside Redis: the fallback when every commit attempt conflicted.

`tests/integration/test_merge_contract.py` checks that the script and `bcs.domain.state` give the same state for the
same facts.
"""

MERGE_SCRIPT = """
-- KEYS: summaries, meta, essays.
-- ARGV: time to live in ms, then for each register: rule, name, slot, value.
local summaries, meta, essays = KEYS[1], KEYS[2], KEYS[3]
local JOINED, MARK = 8, 9
local NEVER_JOINED = string.rep('\\255', JOINED)
local NO_MARK = '-' .. string.rep('\\0', MARK - 1)

-- Times are strings of digits or of bytes, because Lua numbers beyond 2^53 would lose digits.
local function compare_digits(a, b)
  if #a ~= #b then
    return #a < #b and -1 or 1
  end
  if a == b then
    return 0
  end
  return a < b and -1 or 1
end

-- Lua compares strings by the server's locale, and not by their bytes.
local function compare_bytes(a, b)
  for position = 1, math.min(#a, #b) do
    local left, right = string.byte(a, position), string.byte(b, position)
    if left ~= right then
      return left < right and -1 or 1
    end
  end
  return #a == #b and 0 or (#a < #b and -1 or 1)
end

-- A mark: the newer one wins; at the same instant, 'failed' wins.
local function mark_supersedes(new, old, compare)
  local order = compare(string.sub(new, 2), string.sub(old, 2))
  return order > 0 or (order == 0 and string.sub(new, 1, 1) == 'f' and string.sub(old, 1, 1) ~= 'f')
end

-- An expected count: the newer one wins; at the same instant, the larger one wins.
local function count_supersedes(new, old)
  local new_time, new_count = string.match(new, '^(%d+):(%d+)$')
  local old_time, old_count = string.match(old, '^(%d+):(%d+)$')
  local order = compare_digits(new_time, old_time)
  if order == 0 then
    order = compare_digits(new_count, old_count)
  end
  return order > 0
end

-- An outcome: the newest wins, or among copies of one outcome the earliest. At the same instant, an outcome without
-- `speaks_for_all` wins, then the greater status.
local function outcome_supersedes(new, old, rule)
  local new_time, new_speaks, new_status = string.match(new, '^(%d+):([01]):(.*)$')
  local old_time, old_speaks, old_status = string.match(old, '^(%d+):([01]):(.*)$')
  local order = compare_digits(new_time, old_time)
  if order ~= 0 then
    return (order > 0) == (rule == 'newest outcome')
  end
  if new_speaks ~= old_speaks then
    return new_speaks == '0'
  end
  return compare_bytes(new_status, old_status) > 0
end

local supersedes = {
  ['expected'] = count_supersedes,
  ['report'] = function(new, old) return mark_supersedes(new, old, compare_digits) end,
  ['newest outcome'] = outcome_supersedes,
  ['earliest outcome'] = outcome_supersedes,
  ['invalid'] = function(new, old) return compare_digits(new, old) > 0 end,
}

-- All reads and checks come before the first write, so that an error leaves nothing half done.
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
if not string.match(version, '^%d+$') or #version > 18 then
  return redis.error_reply('BCSCORRUPT not a version: ' .. version)
end
local rows, meta_writes, essay_writes = {}, {}, {}

local function row_of(essay)
  if not rows[essay] then
    rows[essay] = redis.call('HGET', essays, essay) or NEVER_JOINED
  end
  return rows[essay]
end

local function set_row(essay, row)
  rows[essay] = row
  essay_writes[essay] = true
end

local function set_field(name, value)
  fields[name] = value
  meta_writes[name] = true
end

for position = 2, #ARGV, 4 do
  local rule, name, slot_name, value = ARGV[position], ARGV[position + 1], ARGV[position + 2], ARGV[position + 3]
  if supersedes[rule] then
    if not fields[name] or supersedes[rule](value, fields[name], rule) then
      set_field(name, value)
    end
  else
    local row = row_of(name)
    if (#row - JOINED) % MARK ~= 0 then
      return redis.error_reply('BCSCORRUPT a row of ' .. #row .. ' bytes')
    end
    if rule == 'joined' then
      if compare_bytes(value, string.sub(row, 1, JOINED)) < 0 then
        set_row(name, value .. string.sub(row, JOINED + 1))
      end
    else
      local slot = fields['slot:' .. slot_name]
      if not slot then
        slot = tostring(slots)
        slots = slots + 1
        set_field('slot:' .. slot_name, slot)
      end
      local before = JOINED + MARK * tonumber(slot)
      if #row <= before then
        row = row .. string.rep(NO_MARK, (before - #row) / MARK + 1)
      end
      local old = string.sub(row, before + 1, before + MARK)
      if old == NO_MARK or mark_supersedes(value, old, compare_bytes) then
        set_row(name, string.sub(row, 1, before) .. value .. string.sub(row, before + MARK + 1))
      end
    end
  end
end
for name in pairs(meta_writes) do
  redis.call('HSET', meta, name, fields[name])
end
for essay in pairs(essay_writes) do
  redis.call('HSET', essays, essay, rows[essay])
end
redis.call('HINCRBY', meta, 'version', 1)
redis.call('DEL', summaries)
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[1])
end
return 1
"""
