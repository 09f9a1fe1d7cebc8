"""What is done in a Redis whole or not at all, in its own Lua. Each script first looks at everything it's going to touch, then changes it.

An answer begins with a word: OK; EPOCH where the mark of our data isn't the one that the caller knows (the Redis was emptied since);
FOREIGN where something else lies under one of our names. Squares outgrow the numbers that Lua counts exactly (2⁵³), so they come in two
parts, of which the lower is below 2⁴⁰.
"""

from __future__ import annotations

KEEP_DAYS = 30
"""Of a tally that nobody counts in any more."""

_SEEN = """
local function other(key, kind)
  local found = redis.call('TYPE', key)['ok']
  return found ~= 'none' and found ~= kind
end
if other(KEYS[1], 'string') then return {'FOREIGN', KEYS[1]} end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'EPOCH'} end
"""

MARK = """
for _, key in ipairs(KEYS) do
  if redis.call('TYPE', key)['ok'] ~= 'none' then
    if key ~= KEYS[1] or redis.call('TYPE', key)['ok'] ~= 'string' then return {'FOREIGN', key} end
    return {'OK', redis.call('GET', key)}
  end
end
redis.call('SET', KEYS[1], ARGV[1])
return {'OK', ARGV[1]}
"""
"""KEYS: mark, then those that can't be there without one. ARGV: a mark. The mark that holds."""

CHANGE = (
    _SEEN
    + """
local mark, room, events, number, revision, lease = unpack(KEYS)
local _, key, document, expected, event, most, channel, holder, token = unpack(ARGV)
for name, kind in pairs({[room] = 'hash', [events] = 'stream', [number] = 'string', [revision] = 'string', [lease] = 'hash'}) do
  if other(name, kind) then return {'FOREIGN', name} end
end
if expected ~= '*' and (redis.call('HGET', room, key) or '') ~= expected then return {'CHANGED'} end
if holder ~= '' then
  local held = redis.call('HMGET', lease, 'holder', 'token')
  if held[1] ~= holder or held[2] ~= token then return {'FENCED'} end
end
local given = 0
if event ~= '' then
  given = redis.call('INCR', number)
  local added = redis.pcall('XADD', events, 'MAXLEN', most, given .. '-0', 'event', event)
  if type(added) == 'table' and added['err'] then return {'FOREIGN', events} end
  redis.call('INCR', revision)
end
if document == '-' then redis.call('HDEL', room, key) elseif document ~= '*' then redis.call('HSET', room, key, document) end
if event ~= '' then redis.call('PUBLISH', channel, given) end
return {'OK', given}
"""
)
"""KEYS: mark, room, events, number, revision, lease. ARGV: mark, key, document (- takes it away, * leaves it), what must be there
(* anything), event ('' none), how many are kept, channel, holder and token of the fence ('' none). The event's number; CHANGED and FENCED
are refusals."""

BEGIN = _SEEN + "redis.call('DEL', KEYS[2], KEYS[3], KEYS[4]) redis.call('HSET', KEYS[2], 'revision', 0) return {'OK'}"
END = _SEEN + "redis.call('DEL', KEYS[2], KEYS[3], KEYS[4]) return {'OK'}"
"""KEYS: mark, tally, its cells, its changes. ARGV: mark."""

COUNT = (
    _SEEN
    + f"""
local _, tally, cells, changes = unpack(KEYS)
local source, number = 's:' .. ARGV[2], tonumber(ARGV[3])
if other(tally, 'hash') then return {{'FOREIGN', tally}} end
if redis.call('EXISTS', tally) == 0 then return {{'ABSENT'}} end
if other(cells, 'hash') then return {{'FOREIGN', cells}} end
if other(changes, 'zset') then return {{'FOREIGN', changes}} end
if tonumber(redis.call('HGET', tally, source) or '0') >= number then return {{'OK'}} end
local news = {{}}
for at = 4, #ARGV, 5 do
  local n, total, high, low = 0, 0, 0, 0
  local before = redis.call('HGET', cells, ARGV[at])
  if before then
    n, total, high, low = string.match(before, '^(%d+) (%d+) (%d+) (%d+)$')
    if not n then return {{'FOREIGN', cells}} end
  end
  low = low + ARGV[at + 4]
  high = high + ARGV[at + 3] + math.floor(low / 2^40)
  news[ARGV[at]] = string.format('%.0f %.0f %.0f %.0f', n + ARGV[at + 1], total + ARGV[at + 2], high, low % 2^40)
end
local revision = redis.call('HINCRBY', tally, 'revision', 1)
redis.call('HSET', tally, source, number)
for cell, value in pairs(news) do
  redis.call('HSET', cells, cell, value)
  redis.call('ZADD', changes, revision, cell)
end
for _, key in ipairs({{tally, cells, changes}}) do redis.call('EXPIRE', key, {KEEP_DAYS * 86400}) end
return {{'OK'}}
"""
)
"""KEYS: mark, tally, its cells, its changes. ARGV: mark, source, number, then of each cell: its name, count, sum, both parts of squares."""

COUNTED = (
    _SEEN
    + """
local _, tally, cells, changes = unpack(KEYS)
for name, kind in pairs({[tally] = 'hash', [cells] = 'hash', [changes] = 'zset'}) do
  if other(name, kind) then return {'FOREIGN', name} end
end
local revision = redis.call('HGET', tally, 'revision')
if not revision then return {'ABSENT'} end
local found = {'OK', revision}
for _, cell in ipairs(redis.call('ZRANGEBYSCORE', changes, '(' .. ARGV[2], '+inf')) do
  found[#found + 1] = cell
  found[#found + 1] = redis.call('HGET', cells, cell) or ''
end
return found
"""
)
"""KEYS: mark, tally, its cells, its changes. ARGV: mark, a revision. The revision, then each cell that changed since and what it holds."""

PULSE = (
    _SEEN
    + """
local _, lease, tokens, revision, number = unpack(KEYS)
local me, seen_token, seen_beat, may_take = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if other(lease, 'hash') then return {'FOREIGN', lease} end
for _, name in ipairs({tokens, revision, number}) do
  if other(name, 'string') then return {'FOREIGN', name} end
end
local held = redis.call('HMGET', lease, 'holder', 'token', 'beat')
if held[1] == me then
  held[3] = redis.call('HINCRBY', lease, 'beat', 1)
elseif not held[1] or (may_take == '1' and held[2] == seen_token and held[3] == seen_beat) then
  held = {me, redis.call('INCR', tokens), 1}
  redis.call('HSET', lease, 'holder', me, 'token', held[2], 'beat', 1)
end
return {'OK', held[1], held[2], held[3], redis.call('GET', revision) or 0, redis.call('GET', number) or 0}
"""
)
"""KEYS: mark, lease, tokens, revision, number. ARGV: mark, who asks, the token and beat that they saw for long, whether they'd take it.
Holder, token and beat from now on, the revision of the documents and the last event's number."""

LEAVE = _SEEN + "if redis.call('HGET', KEYS[2], 'holder') == ARGV[2] then redis.call('DEL', KEYS[2]) end return {'OK'}"
"""KEYS: mark, lease. ARGV: mark, who leaves it."""
