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

ADD = (
    _FAILING
    + _REMEMBERING
    + """
local stream, known, before = unpack(KEYS)
local position = 2
while position < #ARGV do
  local identity, parts = ARGV[position], tonumber(ARGV[position + 1])
  if not is_known(known, before, identity) then
    local _, failure = try('XADD', stream, '*', unpack(ARGV, position + 2, position + 1 + parts))
    if failure then
      return failure
    end
    redis.call('SADD', known, identity)
  end
  position = position + 2 + parts
end
forget_oldest(known, before, ARGV[1])
return redis.call('XLEN', stream)
"""
)
"""Adds entries that were not added before; returns the stream's length.

KEYS: the stream, the newer set, the older set. ARGV: how many identities a set holds; then for each entry its identity,
the number of its fields and values, and these.
"""

MOVE = (
    _FAILING
    + _REMEMBERING
    + """
local stream, target, known, before = unpack(KEYS)
local first_id = 4 + tonumber(ARGV[3])
local missing = {}
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
    local _, refusal = try('XADD', target, '*', unpack(fields))
    if refusal then
      return refusal
    end
    redis.call('SADD', known, id)
    redis.call('XACK', stream, ARGV[2], id)
    redis.call('XDEL', stream, id)
  elseif not is_known(known, before, id) then
    missing[#missing + 1] = id
  end
end
forget_oldest(known, before, ARGV[1])
return missing
"""
)
"""Moves entries to the end of a stream; returns the ids of those that are not there and were not moved before.

KEYS: the stream, the stream to which they go, the newer set, the older set. ARGV: how many identities a set holds, the
consumer group, the number of fields and values that each entry gets in addition, these, and the ids.
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
