"""What happens to an index of vectors in one step, on the server.

Other crews' keys are named within a script: the bus is one server, not a cluster.
"""

from __future__ import annotations

from typing import Final

CLAIM: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return nil end
local bytes = tonumber(ARGV[4])
local held = redis.call('HGETALL', KEYS[4])
for i = 1, #held, 2 do
  local other = 'crew-vectors:' .. held[i] .. ':'
  if held[i] ~= ARGV[1] then
    if redis.call('EXISTS', other .. 'stamp', other .. 'claim') == 0 then
      redis.call('HDEL', KEYS[4], held[i])
    else
      bytes = bytes + tonumber(held[i + 1])
    end
  end
end
if bytes > tonumber(ARGV[5]) then return nil end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
local stamp = redis.call('HMGET', KEYS[2], 'revision', 'vectors')
if stamp[1] and redis.call('VCARD', KEYS[3]) >= tonumber(stamp[2]) then return stamp[1] end
redis.call('UNLINK', KEYS[2], KEYS[3])
return ARGV[6]
"""
"""Keys: claim, stamp, set, sizes. Arguments: crew, token, life of a claim, bytes, bytes of all, nothing.
The revision to go on from. Sizes of crews without an index are forgotten here."""

PUT: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 5, #ARGV, 2 do
  redis.call('VADD', KEYS[3], 'FP32', ARGV[i], ARGV[i + 1], 'Q8', 'M', ARGV[4])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('PEXPIRE', KEYS[3], ARGV[3]) end
return 1
"""
"""Keys: claim, stamp, set. Arguments: token, lives of the claim and of half a set, links, then each vector and its
id. Not with CAS, which spares the server's one thread: a server that finds it in its append-only file crashes."""

FINISH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if redis.call('VCARD', KEYS[3]) ~= tonumber(ARGV[3]) then
  redis.call('UNLINK', KEYS[2], KEYS[3])
  return 0
end
redis.call('HSETNX', KEYS[2], 'build', ARGV[1])
redis.call('HSET', KEYS[2], 'revision', ARGV[2], 'vectors', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return 1
"""
"""Keys: claim, stamp, set. Arguments: token, revision, vectors, life. A set that lost something is given up."""

ABANDON: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3]) end
"""
"""Keys: claim, stamp, set. Argument: token."""
