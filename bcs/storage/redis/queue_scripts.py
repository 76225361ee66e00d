"""What a queue in a Redis stream does inside Redis, so that a write that is tried again adds nothing twice.

Whether a write was carried out is unknown when its reply is lost. So what was added lately is remembered beside the
stream, under an identity, in two sets: the newer one takes the place of the older one when it is full. That bounds what
is remembered by number and not by time: an outage may last as long as it likes before the write is tried again.

What is taken out is bounded by bytes, since Redis bounds it only by number, and a round trip has a deadline. An entry
that is too large for any round trip is set aside without being read, or nothing behind it would ever be read.

A command that fails is a reply, and no error in the script: Redis before 7 would put a text of its own before such an
error. Within a script Redis does not always say which command it refuses, so the script does.
"""

from __future__ import annotations

_FAILING = """
local function try(name, ...)
  local reply = redis.pcall(name, ...)
  if type(reply) == 'table' and reply.err then
    return nil, {err = reply.err .. ' (in ' .. name .. ')'}
  end
  return reply
end
"""

_REMEMBERING = """
local function is_known(known, before, identity)
  return redis.call('SISMEMBER', known, identity) == 1 or redis.call('SISMEMBER', before, identity) == 1
end

local function forget_oldest(known, before, limit)
  if redis.call('SCARD', known) >= tonumber(limit) then
    redis.call('UNLINK', before)
    redis.call('RENAME', known, before)
  end
end
"""

# The entry that has waited longest need not be the first of the stream: whatever is given back goes to the end of it.
# Since when it has waited stands in it then, and the least of these times stands in a hash beside the stream, in two
# parts. `coming` is the least of what was given back from the entry `first` to the entry `last`; `oldest` of what was
# given back before that. Once the stream begins at or behind `first`, nothing of the latter is left, and the former
# takes its place. So what is told is never too young, and too old at most until the queue went around once.
_WAITING_SINCE = """
local function is_before(id, other)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_number = string.match(other, '^(%d+)-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(number) < tonumber(other_number))
end

local function earlier(since, other)
  if not since or since == '' or (other and other ~= '' and tonumber(other) < tonumber(since)) then
    return other
  end
  return since
end

local function since_in(id, fields)
  for position = 1, #fields, 2 do
    if fields[position] == 'since' then
      return fields[position + 1], true
    end
  end
  return string.match(id, '^%d+'), false
end

local function first_of(stream)
  local entries = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)
  return entries[1]
end

local function known_of(waiting)
  local flat, known = redis.call('HGETALL', waiting), {}
  for position = 1, #flat, 2 do
    known[flat[position]] = flat[position + 1]
  end
  return known
end

local function note_since(waiting, head, since, first_id, last_id)
  local known = known_of(waiting)
  local oldest, coming, first = known.oldest, known.coming, known.first
  if first and head and is_before(head, first) then
    coming = earlier(since, coming)
  else
    oldest = (known.last and head and not is_before(known.last, head)) and coming or ''
    coming, first = since, first_id
  end
  redis.call('HSET', waiting, 'oldest', oldest, 'coming', coming, 'first', first, 'last', last_id)
end
"""

ADD = (
    _FAILING
    + _REMEMBERING
    + _WAITING_SINCE
    + """
local stream, known, before, waiting = unpack(KEYS)
local position = 2
local head, oldest, first_id, last_id
while position < #ARGV do
  local identity, since, parts = ARGV[position], ARGV[position + 1], tonumber(ARGV[position + 2])
  if not is_known(known, before, identity) then
    local id, failure
    if since == '' then
      id, failure = try('XADD', stream, '*', unpack(ARGV, position + 3, position + 2 + parts))
    else
      head = head or first_of(stream) or {}
      id, failure = try('XADD', stream, '*', 'since', since, unpack(ARGV, position + 3, position + 2 + parts))
    end
    if failure then
      return failure
    end
    redis.call('SADD', known, identity)
    if since ~= '' then
      oldest, first_id, last_id = earlier(since, oldest), first_id or id, id
    end
  end
  position = position + 3 + parts
end
if oldest then
  note_since(waiting, head[1], oldest, first_id, last_id)
end
forget_oldest(known, before, ARGV[1])
return redis.call('XLEN', stream)
"""
)
"""Adds entries that were not added before; returns the stream's length.

KEYS: the stream, the newer set, the older set, the hash about since when entries wait. ARGV: how many identities a set
holds; then for each entry its identity, since when it has waited already (milliseconds since 1970 UTC, or nothing), the
number of its fields and values, and these.
"""

MOVE = (
    _FAILING
    + _REMEMBERING
    + _WAITING_SINCE
    + """
local stream, target, known, before, waiting = unpack(KEYS)
local first_id = 4 + tonumber(ARGV[3])
local missing = {}
local head = first_of(stream)
local oldest, first_moved, last_moved
for position = first_id, #ARGV do
  local id = ARGV[position]
  local found, failure = try('XRANGE', stream, id, id)
  if failure then
    return failure
  end
  if found[1] then
    local fields = found[1][2]
    for more = 4, first_id - 1 do
      fields[#fields + 1] = ARGV[more]
    end
    local since, is_said = since_in(id, fields)
    if target == stream and not is_said then
      fields[#fields + 1] = 'since'
      fields[#fields + 1] = since
    end
    local moved, refusal = try('XADD', target, '*', unpack(fields))
    if refusal then
      return refusal
    end
    oldest, first_moved, last_moved = earlier(since, oldest), first_moved or moved, moved
    redis.call('SADD', known, id)
    redis.call('XACK', stream, ARGV[2], id)
    redis.call('XDEL', stream, id)
  elseif not is_known(known, before, id) then
    missing[#missing + 1] = id
  end
end
if oldest and target == stream then
  note_since(waiting, head[1], oldest, first_moved, last_moved)
end
forget_oldest(known, before, ARGV[1])
return missing
"""
)
"""Moves entries to the end of a stream; returns the ids of those that are not there and were not moved before.

KEYS: the stream, the stream to which they go, the newer set, the older set, the hash about since when entries wait.
ARGV: how many identities a set holds, the consumer group, the number of fields and values that each entry gets in
addition, these, and the ids.
"""

WAITING = (
    _FAILING
    + _WAITING_SINCE
    + """
local stream, waiting = unpack(KEYS)
local entries, failure = try('XRANGE', stream, '-', '+', 'COUNT', 1)
if failure then
  return failure
end
local time = redis.call('TIME')
local now_ms = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local head = entries[1]
if not head then
  return {0, now_ms, now_ms}
end
local known = known_of(waiting)
local since = earlier(string.match(head[1], '^%d+'), (since_in(head[1], head[2])))
if known.first and is_before(head[1], known.first) then
  since = earlier(since, known.oldest)
end
if known.last and not is_before(known.last, head[1]) then
  since = earlier(since, known.coming)
end
return {redis.call('XLEN', stream), since, now_ms}
"""
)
"""Tells how many entries wait, since when the oldest has waited, and what time it is, in milliseconds since 1970 UTC.

KEYS: the stream, the hash about since when entries wait.
"""

_TAKING = """
local stream, parked = KEYS[1], KEYS[2]
local group, consumer = ARGV[1], ARGV[2]
local most, most_bytes, largest = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local taken, taken_bytes, largest_taken, set_aside = {}, 0, 0, {}

local function take(entry)
  local id, fields = entry[1], entry[2]
  local bytes = 0
  for _, part in ipairs(fields or {}) do
    bytes = bytes + #part
  end
  if bytes <= largest then
    taken[#taken + 1] = entry
    taken_bytes = taken_bytes + bytes
    largest_taken = math.max(largest_taken, bytes)
    return nil
  end
  fields[#fields + 1] = 'problem'
  fields[#fields + 1] = 'too large: ' .. bytes .. ' bytes'
  local _, failure = try('XADD', parked, '*', unpack(fields))
  if failure then
    return failure
  end
  redis.call('XACK', stream, group, id)
  redis.call('XDEL', stream, id)
  set_aside[#set_aside + 1] = id
end
"""

LEASE = (
    _FAILING
    + _TAKING
    + """
local after = ARGV[6]
local count = 1
while #taken < most and taken_bytes < most_bytes do
  local reply, failure = try('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', stream, after)
  if failure then
    return failure
  end
  local entries = reply and reply[1][2]
  if not entries or #entries == 0 then
    break
  end
  for _, entry in ipairs(entries) do
    failure = take(entry)
    if failure then
      return failure
    end
    if after ~= '>' then
      after = entry[1]
    end
  end
  -- Several at a time cost less. The next ones may be larger than these, so never many.
  local room = math.floor((most_bytes - taken_bytes) / (4 * largest_taken + 1))
  count = math.max(1, math.min(20, most - #taken, room))
end
return {taken, set_aside}
"""
)
"""Leases entries: those that nobody has leased yet, or again those that a consumer has leased and not settled.

KEYS: the stream, the stream for what is set aside. ARGV: the consumer group, the consumer, how many entries, how many
bytes (the last entry may go beyond), the size of the largest entry that may be read, and `>`, or the id behind which
the consumer's own entries begin. Returns the entries, and the ids of those that were set aside.
"""

RECOVER = (
    _FAILING
    + _TAKING
    + """
local idle_ms, cursor = ARGV[6], ARGV[7]
for _ = 1, most do
  local reply, failure = try('XAUTOCLAIM', stream, group, consumer, idle_ms, cursor, 'COUNT', 1)
  if failure then
    return failure
  end
  cursor = reply[1]
  for _, entry in ipairs(reply[2]) do
    -- Before 7, Redis tells an entry that was deleted as a null.
    failure = entry and take(entry)
    if failure then
      return failure
    end
  end
  if cursor == '0-0' or taken_bytes >= most_bytes then
    break
  end
end
return {taken, set_aside, cursor}
"""
)
"""Takes over entries of other consumers that were leased long ago.

Redis looks at ten leased entries for each that is asked for, and says where to go on. KEYS and ARGV: as for `LEASE`; in
the place of its last argument how long ago in milliseconds, and where to go on. Returns also where to go on next time.
"""
