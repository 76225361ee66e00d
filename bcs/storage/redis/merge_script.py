"""The commit of facts: a script inside Redis that merges each register with the stored one.

The script declares one key, reads and writes only what the facts are about, and can't conflict with other writers. All
reads and checks come before the first write, so that an error leaves nothing half done.

`tests/integration/test_merge_contract.py` checks that the script and `bcs.domain.state` give the same state for the
same facts.
"""

from __future__ import annotations

from bcs.storage.redis.script import Script

INCOMPLETE, FULL, ERASED = b"incomplete", b"full", b"erased"
"""Why the script changed nothing: the batch does not have the stamp; the batch has no room for the new essays; the
batch was erased. With `FULL` comes the number of essays that the batch has, with `ERASED` the tombstone. After a merge
the reply is the number of essays alone."""

MERGE = Script("""
-- KEYS: the hash with the batch's facts.
-- ARGV: time to live in ms; the stamp that the batch must have, or nothing; how many essays the batch may have, or 0;
--   the number of slots, and for each its field; the number of rows, and for each its field and its row;
--   for each register its rule, its field and its value.
local key = KEYS[1]
local NUMBER = 8
local NO_MARK, NEVER_SEEN = string.rep('\\0', NUMBER), string.rep('\\255', NUMBER)
-- More arguments at a time would not fit on Lua's stack.
local AT_A_TIME = 2000

local function corrupt(what)
  return redis.error_reply('BCSCORRUPT ' .. what)
end

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

-- Numbers of eight bytes.
local function is_less(a, b)
  if a == b then
    return false
  end
  local high, low = struct.unpack('>I4I4', a)
  local other_high, other_low = struct.unpack('>I4I4', b)
  return high < other_high or (high == other_high and low < other_low)
end

-- Each register: how its value is read, and whether a new value replaces the old one.

-- A report: the newer one wins; at the same instant, 'failed' wins.
local report = {
  read = function(value)
    return string.match(value, '^([cf])(%d+)$')
  end,
  supersedes = function(outcome, time, old_outcome, old_time)
    local order = compare_digits(time, old_time)
    return order > 0 or (order == 0 and outcome == 'f' and old_outcome ~= 'f')
  end,
}

-- An expected count: the newer one wins; at the same instant, the larger one wins.
local expected = {
  read = function(value)
    return string.match(value, '^(%d+):(%d+)$')
  end,
  supersedes = function(time, count, old_time, old_count)
    local order = compare_digits(time, old_time)
    return order > 0 or (order == 0 and compare_digits(count, old_count) > 0)
  end,
}

-- An outcome: the newest wins, or among copies of one outcome the earliest. At the same instant, an outcome without
-- `speaks_for_all` wins, then the greater status.
local function outcome(wins)
  return {
    read = function(value)
      local time, rest = string.match(value, '^(%d+):([01]:.*)$')
      return time, rest
    end,
    supersedes = function(time, rest, old_time, old_rest)
      local order = compare_digits(time, old_time)
      if order ~= 0 then
        return order == wins
      end
      local speaks, old_speaks = string.sub(rest, 1, 1), string.sub(old_rest, 1, 1)
      if speaks ~= old_speaks then
        return speaks == '0'
      end
      return compare_bytes(rest, old_rest) > 0
    end,
  }
end

-- The time of an invalidation, or of the newest fact under a definition: the latest wins.
local latest = {
  read = function(value)
    return string.match(value, '^(%d+)$')
  end,
  supersedes = function(time, _, old_time)
    return compare_digits(time, old_time) > 0
  end,
}

local rules = {
  ['report'] = report,
  ['expected'] = expected,
  ['newest outcome'] = outcome(1),
  ['earliest outcome'] = outcome(-1),
  ['invalid'] = latest,
  ['definition'] = latest,
}

local ttl_ms, stamp, limit, slot_count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local row_count = tonumber(ARGV[5 + slot_count])
local first_row = 6 + slot_count
local first_register = first_row + 2 * row_count

local names = {'version', 'complete', 'essays', 'slots', 'erased'}
local OWN = #names
for number = 1, slot_count do
  names[OWN + number] = ARGV[4 + number]
end
for position = first_row, first_register - 1, 2 do
  names[#names + 1] = ARGV[position]
end
for position = first_register, #ARGV, 3 do
  names[#names + 1] = ARGV[position + 1]
end
local stored = {}
for first = 1, #names, AT_A_TIME do
  local values = redis.call('HMGET', key, unpack(names, first, math.min(first + AT_A_TIME - 1, #names)))
  for number = 1, #values do
    stored[first + number - 1] = values[number]
  end
end

if stored[5] then
  return {'erased', stored[5]}
end
local version, stored_stamp, essays, slots = stored[1], stored[2], stored[3] or '0', stored[4] or '0'
if version and not (string.match(version, '^%d+$') and #version <= 16) then
  return corrupt('not a version: ' .. version)
end
if not (string.match(essays, '^%d+$') and string.match(slots, '^%d+$')) then
  return corrupt('not a number of essays and of slots: ' .. essays .. ', ' .. slots)
end
if stamp ~= '' and (not stored_stamp or string.sub(stored_stamp, 1, #stamp) ~= stamp) then
  return {'incomplete'}
end
essays, slots = tonumber(essays), tonumber(slots)
local known, known_slots = essays, slots

local changes = {}
local function set(name, value)
  changes[#changes + 1] = name
  changes[#changes + 1] = value
end

local before_mark = {}
for number = 1, slot_count do
  local slot = stored[OWN + number]
  if not slot then
    slot = slots
    slots = slots + 1
    set(names[OWN + number], slot)
    set('slots', slots)
  elseif not string.match(slot, '^%d+$') or tonumber(slot) >= known_slots then
    return corrupt('not a slot: ' .. slot)
  end
  before_mark[number] = NUMBER * (1 + tonumber(slot))
end

for number = 1, row_count do
  local name, new = ARGV[first_row + 2 * number - 2], ARGV[first_row + 2 * number - 1]
  local old = stored[OWN + slot_count + number]
  local row = old or NEVER_SEEN
  if #row == 0 or #row % NUMBER ~= 0 or #row > NUMBER * (1 + known_slots) then
    return corrupt('a row of ' .. #row .. ' bytes')
  end
  local seen = string.sub(new, 1, NUMBER)
  if is_less(seen, string.sub(row, 1, NUMBER)) then
    row = seen .. string.sub(row, NUMBER + 1)
  end
  for column = 1, #new / NUMBER - 1 do
    local mark = string.sub(new, NUMBER * column + 1, NUMBER * column + NUMBER)
    if mark ~= NO_MARK then
      local before = before_mark[column]
      if #row < before + NUMBER then
        row = row .. string.rep(NO_MARK, (before + NUMBER - #row) / NUMBER)
      end
      if is_less(string.sub(row, before + 1, before + NUMBER), mark) then
        row = string.sub(row, 1, before) .. mark .. string.sub(row, before + NUMBER + 1)
      end
    end
  end
  if not old then
    essays = essays + 1
  end
  if row ~= old then
    set(name, row)
  end
end
if essays > known then
  if limit > 0 and essays > limit then
    return {'full', known}
  end
  set('essays', essays)
end

local place = OWN + slot_count + row_count
for position = first_register, #ARGV, 3 do
  place = place + 1
  local name, value, old = ARGV[position + 1], ARGV[position + 2], stored[place]
  if not old then
    set(name, value)
  else
    local rule = rules[ARGV[position]]
    local old_first, old_second = rule.read(old)
    if not old_first then
      return corrupt('not a value of ' .. name .. ': ' .. old)
    end
    local first, second = rule.read(value)
    if rule.supersedes(first, second, old_first, old_second) then
      set(name, value)
    end
  end
end

if #changes > 0 then
  if version then
    set('version', string.format('%.0f', tonumber(version) + 1))
  else
    -- Not from 1: a batch that expires and comes again must not repeat a version.
    local time = redis.call('TIME')
    set('version', string.format('%.0f', time[1] * 1000000 + time[2]))
  end
  for first = 1, #changes, AT_A_TIME do
    redis.call('HSET', key, unpack(changes, first, math.min(first + AT_A_TIME - 1, #changes)))
  end
end
redis.call('PEXPIRE', key, ttl_ms)
return essays
""")
