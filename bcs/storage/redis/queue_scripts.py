"""The scripts of a queue in a Redis stream, with which a repeated write adds nothing twice.

When the reply to a write is lost, the caller can't know whether the write was carried out. So the identities of new
entries are kept beside the stream in two sets: the newer set replaces the older set when it is full. This limits the
number of identities and not their age, so the write can be repeated after an outage of any length.

Leased entries are limited by bytes, because Redis limits them only by number, and a round trip has a deadline. An entry
that is too large for any round trip is parked unread, or it would block all entries after it.

A failed command is returned as a reply and not raised, because Redis before 7 would put its own text before a raised
error. Inside a script Redis does not always name the command that it refuses, so the scripts add the name.
"""

from __future__ import annotations

from bcs.storage.redis.script import Script

_FAILING = """
local function try(name, ...)
  local reply = redis.pcall(name, ...)
  if type(reply) == 'table' and reply.err then
    return nil, {err = reply.err .. ' (in ' .. name .. ')'}
  end
  return reply
end
"""

_IDENTITIES = """
local function is_known(known, before, identity)
  return redis.call('SISMEMBER', known, identity) == 1 or redis.call('SISMEMBER', before, identity) == 1
end

local function drop_older_set(known, before, limit)
  if redis.call('SCARD', known) >= tonumber(limit) then
    redis.call('UNLINK', before)
    redis.call('RENAME', known, before)
  end
end
"""

# The entry that has waited longest is not always the first of the stream, because a requeued entry goes to the end. A
# requeued entry has a field with the time since when it has waited. A hash beside the stream keeps the minimum of these
# times in two parts: `coming` is the minimum of the requeued entries from `first` to `last`, and `oldest` is the
# minimum of the entries that were requeued before `first`. Once the stream begins at or after `first`, no entry of the
# second group is left, so `coming` becomes `oldest`. So the reported age is never too low, and too high at most until
# the queue has been drained once.
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

ADD = Script(
    _FAILING
    + _IDENTITIES
    + _WAITING_SINCE
    + """
local stream, known, before, waiting = unpack(KEYS)
local once_ms = ARGV[2]
local position = 3
local head, oldest, first_id, last_id
while position < #ARGV do
  local identity, since, once = ARGV[position], ARGV[position + 1], KEYS[tonumber(ARGV[position + 2])]
  local parts = tonumber(ARGV[position + 3])
  local is_repeated = once and try('EXISTS', once) == 1
  if not is_repeated and not is_known(known, before, identity) then
    local id, failure
    if since == '' then
      id, failure = try('XADD', stream, '*', unpack(ARGV, position + 4, position + 3 + parts))
    else
      head = head or first_of(stream) or {}
      id, failure = try('XADD', stream, '*', 'since', since, unpack(ARGV, position + 4, position + 3 + parts))
    end
    if failure then
      return failure
    end
    redis.call('SADD', known, identity)
    if once then
      -- After the entry: without this key the entry comes twice, and without the entry it would never come.
      try('SET', once, '', 'PX', once_ms)
    end
    if since ~= '' then
      oldest, first_id, last_id = earlier(since, oldest), first_id or id, id
    end
  end
  position = position + 4 + parts
end
if oldest then
  note_since(waiting, head[1], oldest, first_id, last_id)
end
drop_older_set(known, before, ARGV[1])
return redis.call('XLEN', stream)
"""
)
"""Adds entries that were not added before; returns the stream's length.

KEYS: the stream, the newer set, the older set, the hash with the waiting times; then for each entry that is not added
again for some time a key that exists for this time. ARGV: how many identities a set holds; this time in milliseconds;
then for each entry its identity, since when it has waited (milliseconds since 1970 UTC, or empty), the position of its
key in KEYS or 0, the number of its fields and values, and the fields and values.
"""

MOVE = (
    _FAILING
    + _IDENTITIES
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
    local since, has_field = since_in(id, fields)
    if target == stream and not has_field then
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
drop_older_set(known, before, ARGV[1])
return missing
"""
)
"""Moves entries to the end of a stream; returns the ids of missing entries that were not moved before.

KEYS: the stream, the target stream, the newer set, the older set, the hash with the waiting times. ARGV: how many
identities a set holds, the consumer group, the number of additional fields and values for each entry, these fields and
values, and the ids.
"""

REMOVE = (
    _FAILING
    + _IDENTITIES
    + """
local stream, known, before = unpack(KEYS)
local removed = 0
for position = 3, #ARGV do
  local id = ARGV[position]
  local _, failure = try('XACK', stream, ARGV[2], id)
  if failure then
    return failure
  end
  local deleted
  deleted, failure = try('XDEL', stream, id)
  if failure then
    return failure
  end
  if deleted > 0 then
    redis.call('SADD', known, id)
    removed = removed + deleted
  end
end
drop_older_set(known, before, ARGV[1])
return {removed, redis.call('XLEN', stream)}
"""
)
"""Removes entries for good; returns how many, and the stream's length.

Who has leased an entry may give it back later. So it counts as moved, and is not added again.

KEYS: the stream, the newer set, the older set. ARGV: how many identities a set holds, the consumer group, the ids.
"""

WAITING = Script(
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
"""Returns how many entries wait, since when the oldest has waited, and the time now, in milliseconds since 1970 UTC.

KEYS: the stream, the hash with the waiting times.
"""

ACK = Script(
    _FAILING
    + """
local stream = KEYS[1]
local _, failure = try('XACK', stream, unpack(ARGV))
if failure then
  return failure
end
_, failure = try('XDEL', stream, unpack(ARGV, 2))
if failure then
  return failure
end
return redis.call('XLEN', stream)
"""
)
"""Deletes delivered entries; returns the stream's length. It does the same as a transaction, in one command.

KEYS: the stream. ARGV: the consumer group, and the ids.
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

LEASE = Script(
    _FAILING
    + _TAKING
    + """
local after = ARGV[6]
local count = math.min(most, tonumber(ARGV[7]))
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
  -- Several entries at a time cost less. The next entries may be larger than these, so the number stays small.
  local room = math.floor((most_bytes - taken_bytes) / (4 * largest_taken + 1))
  count = math.max(1, math.min(20, most - #taken, room))
end
return {taken, set_aside}
"""
)
"""Leases entries that no consumer has leased, or again the entries that a consumer has leased and not acked.

KEYS: the stream, the stream of parked entries. ARGV: the consumer group, the consumer, how many entries, how many bytes
(the last entries may exceed this), the size of the largest entry that may be read, `>` for new entries, or the id after
which the consumer's own entries begin, and how many entries are read first. Returns the entries, and the ids of the
entries that were parked.
"""

RECOVER = Script(
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
    -- Before 7, Redis returns a deleted entry as a null.
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
"""Takes over entries that other consumers leased long ago.

Redis scans ten leased entries for each requested entry, and returns a cursor. KEYS and ARGV: as for `LEASE`, but the
last argument is replaced by the age of the lease in milliseconds and the cursor. Also returns the next cursor.
"""
