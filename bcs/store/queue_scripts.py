"""What a queue in a Redis stream does inside Redis, so that a write that is tried again adds nothing twice.

Whether a write was carried out is unknown when its reply is lost. So what was added lately is remembered beside the
stream, under an identity, in two sets: the newer one takes the place of the older one when it is full. That bounds what
is remembered by number and not by time: an outage may last as long as it likes before the write is tried again.

A failed write is a reply, and no error in the script: Redis before 7 would put a text of its own before such an error.
"""

from __future__ import annotations

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
    _REMEMBERING
    + """
local stream, known, before = unpack(KEYS)
local position = 2
while position < #ARGV do
  local identity, parts = ARGV[position], tonumber(ARGV[position + 1])
  if not is_known(known, before, identity) then
    local added = redis.pcall('XADD', stream, '*', unpack(ARGV, position + 2, position + 1 + parts))
    if type(added) == 'table' then
      return added
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
    _REMEMBERING
    + """
local stream, target, known, before = unpack(KEYS)
local first_id = 4 + tonumber(ARGV[3])
local missing = {}
for position = first_id, #ARGV do
  local id = ARGV[position]
  local found = redis.pcall('XRANGE', stream, id, id)
  if found.err then
    return found
  end
  if found[1] then
    local fields = found[1][2]
    for more = 4, first_id - 1 do
      fields[#fields + 1] = ARGV[more]
    end
    local added = redis.pcall('XADD', target, '*', unpack(fields))
    if type(added) == 'table' then
      return added
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
