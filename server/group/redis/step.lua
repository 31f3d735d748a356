-- All that happens to the steps of a job, each event by one atomic run of this script: the automaton
-- of server/group/step.h and job.h, kept in Redis. The texts that refuse a call are made in C++; the
-- texts that end a step are made here, as they end it for all.
--
-- Keys, where JOB is a hash of the job's name; every one expires. (Only two are handed to the script,
-- which makes the others out of them and out of tokens: it is not for Redis Cluster.)
--   gradclip:instance           hash: id, run (the run_id of the Redis that the id was made in)
--   gradclip:server:SERVER      hash: epoch, instance, lease (ms; the server is alive until then).
--                               Also the name of the channel on which the server is told.
--   gradclip:{JOB}:job          hash: secret, generation, over (all steps up to it are over)
--   gradclip:{JOB}:open         sorted set of the open steps, by when they time out
--   gradclip:{JOB}:aborted      hash: step -> highest aborted attempt, of steps beyond `over`
--   gradclip:{JOB}:G:S          hash: generation G's step S; the fields are those of load()
--   gradclip:{JOB}:G:S:calls    hash: rank -> of a rank that has come and not contributed, its calls
--                               "T TOKEN TOKEN", or since when (ms) it has none: "L SINCE"
--   gradclip:{JOB}:G:S:sums     hash: rank -> "TOKEN CONTRIBUTION"; once committed also id -> id
--
-- A call's token begins with its server's id (10 characters). Generations, steps and attempts are
-- decimal strings, as Lua's numbers hold only 53 bits. Times are milliseconds of Redis's clock.
--
-- Messages: "C STEP SUMS", "A STEP CODE WHY", and "T STEP MS": look at it again in MS; where STEP is
-- JOB:G:S:ATTEMPT, and SUMS the fields and values of sums, "LENGTH:TEXT" each; empty where they are to
-- be fetched.
--
-- Functions are made anew in every run: those that few runs need are made where they are needed.
local ABORTED, DEADLINE_EXCEEDED, FAILED_PRECONDITION = 10, 4, 9
local SERVER_ID = 10
local MOST_ABORTED = 64  -- as in job.cc
local SHOWN_RANKS = 10
local MOST_SENT = 64  -- ranks whose contributions go with the word that they are complete

local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local op, server, epoch = ARGV[1], ARGV[2], ARGV[3]

if op == 'load' then return {'loaded'} end  -- Redis knows the script from here on

local function text(number) return string.format('%.0f', number) end

local function keep(key, ttl)
  local left = call('PTTL', key)
  if left ~= -2 and left < ttl then call('PEXPIRE', key, text(ttl)) end  -- -2: there is none
end

-- ---- what a server says of itself: KEYS are its key and the instance's ----

if op == 'hello' or op == 'renew' then
  local lease, server_ttl, instance_ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
  local known = call('HMGET', KEYS[1], 'epoch', 'instance')
  local instance = call('HGET', KEYS[2], 'id')
  if op == 'renew' then
    if known[1] ~= epoch or known[2] ~= instance then return {'stale'} end
  else
    -- What an older connection of this server still had under way is refused from here on.
    if known[1] and tonumber(known[1]) > tonumber(epoch) then return {'stale'} end
    -- Another process may have lost what the one before knew: a restart, or a replica that took over.
    local run = string.match(call('INFO', 'server'), 'run_id:(%w+)')
    if not instance or call('HGET', KEYS[2], 'run') ~= run then
      instance = ARGV[7]
      call('HSET', KEYS[2], 'id', instance, 'run', run)
    end
  end
  keep(KEYS[2], instance_ttl)
  call('HSET', KEYS[1], 'epoch', epoch, 'instance', instance, 'lease', text(now + lease))
  call('PEXPIRE', KEYS[1], text(server_ttl))
  return {'hello', instance}
end

-- ---- a step ----

local SERVER, BASE = KEYS[1], KEYS[2]  -- BASE: gradclip:{JOB}:
local lease, grace, grace_text = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local result_ttl, job_ttl = tonumber(ARGV[7]), tonumber(ARGV[8])
local generation, number, attempt, id = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local rank, token = ARGV[13], ARGV[14]
local JOB, OPEN, ABORTED_ATTEMPTS = BASE .. 'job', BASE .. 'open', BASE .. 'aborted'
local STEP = BASE .. generation .. ':' .. number
local CALLS, SUMS = STEP .. ':calls', STEP .. ':sums'

local itself = call('HMGET', SERVER, 'epoch', 'instance')
if itself[1] ~= epoch then return {'stale'} end
local instance = itself[2]

local function less(a, b)  -- of decimal strings
  if #a ~= #b then return #a < #b end
  return a < b
end

local function load(key)
  local values = call('HMGET', key, 'attempt', 'id', 'state', 'code', 'why', 'instance', 'terms',
      'terms_rank', 'world', 'opened', 'timeout', 'timeout_text', 'timeout_rank', 'servers', 'due')
  if not values[1] then return nil end
  return {
    attempt = values[1], id = values[2],  -- id: the token of the call that opened it
    -- o, c or a: open, committed, aborted with a code and why
    state = values[3], code = values[4], why = values[5],
    instance = values[6], terms = values[7], terms_rank = values[8], world = tonumber(values[9]),
    opened = tonumber(values[10]), timeout = tonumber(values[11]), timeout_text = values[12],
    timeout_rank = values[13],
    servers = values[14],                 -- that have had calls in it, each with a space before it
    due = tonumber(values[15]),           -- nothing happens by itself before
  }
end

local job = call('HMGET', JOB, 'secret', 'generation', 'over')
local job_secret, job_generation, job_over = job[1], job[2], job[3]

local job_hash = string.match(BASE, '{(.*)}')

-- Tells the servers that have had calls in the step; but for this one, where it has the script's
-- answer.
local function tell(kind, of_generation, of_number, step, rest)
  local is_answer = of_generation == generation and of_number == number and step.attempt == attempt
  local message = kind .. ' ' .. job_hash .. ':' .. of_generation .. ':' .. of_number .. ':' ..
      step.attempt .. rest
  for other in string.gmatch(step.servers, '%S+') do
    if not is_answer or other ~= server then
      call('PUBLISH', 'gradclip:server:' .. other, message)
    end
  end
end

local function keep_job()
  keep(JOB, job_ttl)
  keep(ABORTED_ATTEMPTS, job_ttl)
end

local function is_over(of_number)
  return job_over and not less(job_over, of_number)
end

-- All steps up to this one are over.
local function set_over(last)
  job_over = last
  call('HSET', JOB, 'over', last)
  for _, known in ipairs(call('HKEYS', ABORTED_ATTEMPTS)) do
    if not less(last, known) then call('HDEL', ABORTED_ATTEMPTS, known) end
  end
end

local function note_aborted(of_attempt)
  if job_generation ~= generation or is_over(number) then return end
  local known = call('HGET', ABORTED_ATTEMPTS, number)
  if not known or less(known, of_attempt) then
    call('HSET', ABORTED_ATTEMPTS, number, of_attempt)
  end
  if call('HLEN', ABORTED_ATTEMPTS) <= MOST_ABORTED then return end
  local lowest
  for _, one in ipairs(call('HKEYS', ABORTED_ATTEMPTS)) do
    if not lowest or less(one, lowest) then lowest = one end
  end
  set_over(lowest)
end

local function abort(step, code, why)
  step.state, step.code, step.why = 'a', text(code), why
  call('HSET', STEP, 'state', 'a', 'code', step.code, 'why', why)
  call('DEL', CALLS, SUMS)
  call('PEXPIRE', STEP, text(result_ttl))
  call('ZREM', OPEN, number)
  note_aborted(step.attempt)
  keep_job()
  tell('A', generation, number, step, ' ' .. step.code .. ' ' .. why)
end

local function commit(step)
  step.state = 'c'
  call('HSET', STEP, 'state', 'c')
  call('HSET', SUMS, 'id', step.id)
  call('DEL', CALLS)
  call('PEXPIRE', STEP, text(result_ttl))
  call('PEXPIRE', SUMS, text(result_ttl))
  call('ZREM', OPEN, number)
  if not is_over(number) then set_over(number) end
  keep_job()
  step.sums = ''
  if step.world <= MOST_SENT then
    local texts = call('HGETALL', SUMS)
    for i, one in ipairs(texts) do texts[i] = #one .. ':' .. one end
    step.sums = table.concat(texts)
  end
  tell('C', generation, number, step, ' ' .. step.sums)
end

-- What is due by now. REQUIRES: the step is open.
local function look(step)
  local function list_ranks(ranks, count)
    local shown = {}
    for i = 1, math.min(#ranks, SHOWN_RANKS) do shown[i] = text(ranks[i]) end
    local list = table.concat(shown, ', ')
    if count > #shown then list = list .. ' and ' .. text(count - #shown) .. ' more' end
    return list
  end

  -- Until when a rank is there, or was: by the lease of its calls' servers, or since when it has none.
  local leases = {}
  local function there_until(value)
    if string.sub(value, 1, 1) == 'L' then return tonumber(string.sub(value, 3)) end
    local last = 0
    for one in string.gmatch(string.sub(value, 3), '%S+') do
      local of = string.sub(one, 1, SERVER_ID)
      if not leases[of] then
        leases[of] = tonumber(call('HGET', 'gradclip:server:' .. of, 'lease') or '0')
      end
      last = math.max(last, leases[of])
    end
    return last
  end

  -- Pairs of rank and value, sorted by rank.
  local flat, calls = call('HGETALL', CALLS), {}
  for i = 1, #flat, 2 do calls[#calls + 1] = {tonumber(flat[i]), flat[i + 1]} end
  table.sort(calls, function(a, b) return a[1] < b[1] end)

  local function describe_missing()
    local has_come, complete = {}, 0
    for _, one in ipairs(call('HKEYS', SUMS)) do
      has_come[tonumber(one)] = true
      complete = complete + 1
    end
    local sending, lost = {}, {}
    for _, one in ipairs(calls) do
      has_come[one[1]] = true
      local ranks = there_until(one[2]) > now and sending or lost
      ranks[#ranks + 1] = one[1]
    end
    local absent, absent_count = {}, step.world - complete - #sending - #lost
    local next_rank = 0
    while next_rank < step.world and #absent < SHOWN_RANKS do
      if not has_come[next_rank] then absent[#absent + 1] = next_rank end
      next_rank = next_rank + 1
    end
    local parts = {}
    local function add(what, ranks, count)
      if count > 0 then parts[#parts + 1] = what .. ': rank ' .. list_ranks(ranks, count) end
    end
    add('not come', absent, absent_count)
    add('sent only part', sending, #sending)
    add('lost its connection', lost, #lost)
    return text(complete) .. ' of ' .. text(step.world) .. ' ranks are complete; ' ..
        table.concat(parts, '; ')
  end

  if now >= step.opened + step.timeout then
    return abort(step, DEADLINE_EXCEEDED,
        step.timeout_text .. ' have passed since its first rank came (timeout of rank ' ..
        step.timeout_rank .. '); ' .. describe_missing())
  end
  step.due = step.opened + step.timeout
  local gone = {}
  for _, one in ipairs(calls) do
    local ends = there_until(one[2]) + grace
    if now >= ends then gone[#gone + 1] = one[1] end
    step.due = math.min(step.due, ends)
  end
  if #gone > 0 then
    return abort(step, ABORTED, 'lost the connection of rank ' .. list_ranks(gone, #gone) ..
        ', and waited ' .. grace_text .. ' (--group-reconnect-grace)')
  end
  call('HSET', STEP, 'due', text(step.due))
end

-- What time does. REQUIRES: the step is open.
local function tick(step)
  if step.instance ~= instance then
    return abort(step, ABORTED,
        'Redis was restarted or replaced amid it, and may have lost what ranks had brought')
  end
  if now >= step.due then look(step) end
end

local function due_by(step, when)
  if when >= step.due then return false end
  step.due = when
  call('HSET', STEP, 'due', text(when))
  return true
end

local function answer(step)
  if step.state == 'a' then return {'aborted', step.code, step.why} end
  if step.state == 'c' then return {'committed', step.id, step.sums or ''} end
  return {'open', step.id, text(math.max(0, step.due - now))}
end

-- What else a server has seen end, where Redis has forgotten it.
local function recall(known_generation, known_over)
  if known_generation == job_generation and known_over ~= '' and
      (not job_over or less(job_over, known_over)) then
    set_over(known_over)
  end
end

-- ---- join ----

local function disagreement(step, terms)
  if terms == step.terms then return nil end
  local mine, others = {}, {}
  for term in string.gmatch(terms, '[^%z]*%z') do mine[#mine + 1] = term end
  for term in string.gmatch(step.terms, '[^%z]*%z') do others[#others + 1] = term end
  -- (A field, its value, the next field, ...)
  for i = 1, math.min(#mine, #others), 2 do
    if mine[i] ~= others[i] or mine[i + 1] ~= others[i + 1] then
      return string.sub(mine[i], 1, -2) .. ' is ' .. string.sub(mine[i + 1], 1, -2) .. ' at rank ' ..
          rank .. ' and ' .. string.sub(others[i + 1], 1, -2) .. ' at rank ' .. step.terms_rank
    end
  end
  return 'rank ' .. rank .. ' and rank ' .. step.terms_rank .. ' call servers of different versions'
end

local function end_older_generation()
  local why = 'generation ' .. generation .. ' of the job has begun'
  for _, older in ipairs(call('ZRANGE', OPEN, 0, -1)) do
    local key = BASE .. job_generation .. ':' .. older
    local step = load(key)
    if step and step.state == 'o' then
      call('HSET', key, 'state', 'a', 'code', text(ABORTED), 'why', why)
      call('PEXPIRE', key, text(result_ttl))
      call('DEL', key .. ':calls', key .. ':sums')
      tell('A', job_generation, older, step, ' ' .. text(ABORTED) .. ' ' .. why)
    end
  end
  call('DEL', OPEN, ABORTED_ATTEMPTS)
  call('HDEL', JOB, 'over')
  job_over = false
end

-- The rank's contribution to a step that is open or committed.
local function take(step, contribution)
  if call('HSETNX', SUMS, rank, token .. ' ' .. contribution) == 0 then
    local taken = call('HGET', SUMS, rank)
    if string.sub(taken, string.find(taken, ' ', 1, true) + 1) ~= contribution then return {'taken'} end
    return answer(step)
  end
  local count = call('HLEN', SUMS)
  if count == step.world then
    commit(step)
  else
    call('HDEL', CALLS, rank)
    if count == 1 then call('PEXPIRE', SUMS, text(step.timeout + result_ttl)) end
  end
  return answer(step)
end

-- With what the call has brought already; '' for nothing yet.
local function join(secret, world, terms, timeout, timeout_text, may_open, most_open, known_generation,
                    known_over, contribution)
  if job_secret then
    if secret ~= job_secret then return {'refused', 'secret'} end
    if less(generation, job_generation) then return {'refused', 'generation', job_generation} end
  elseif known_generation ~= '' and less(generation, known_generation) then
    return {'refused', 'generation', known_generation}
  end
  recall(known_generation, known_over)

  local step
  if job_generation == generation then
    step = load(STEP)
    if step and step.state == 'o' then tick(step) end
    if step and step.attempt ~= attempt then
      if less(attempt, step.attempt) then return {'refused', 'attempt', step.attempt} end
      if step.state == 'c' then return {'refused', 'committed', step.attempt} end
    end
    if not step or step.attempt ~= attempt then
      if is_over(number) then return {'refused', 'over', job_over} end
      local aborted = call('HGET', ABORTED_ATTEMPTS, number)
      if aborted and not less(aborted, attempt) then return {'refused', 'aborted', aborted} end
    end
  elseif not job_generation and known_generation == generation and known_over ~= '' and
      not less(known_over, number) then
    return {'refused', 'over', known_over}
  end

  if not step or step.attempt ~= attempt then
    if not may_open then return {'refused', 'stopping'} end
    if job_generation and job_generation ~= generation then end_older_generation() end
    call('ZREMRANGEBYSCORE', OPEN, '-inf', text(now - 1))
    if not step or step.state ~= 'o' then
      local open = call('ZCARD', OPEN)
      if open >= most_open then return {'refused', 'full', text(open)} end
    end
    if job_generation ~= generation then
      call('HSET', JOB, 'secret', secret, 'generation', generation)
      job_generation = generation
      recall(known_generation, known_over)
    end
    if step and step.state == 'o' then
      abort(step, ABORTED, 'attempt ' .. attempt .. ' of the step has begun')
    end
    call('DEL', STEP, CALLS, SUMS)
    step = {
      attempt = attempt, id = token, state = 'o', instance = instance, terms = terms,
      terms_rank = rank, world = world, opened = now, timeout = timeout,
      timeout_text = timeout_text, timeout_rank = rank, servers = ' ' .. server, due = now + timeout,
    }
    call('HSET', STEP, 'attempt', attempt, 'id', token, 'state', 'o', 'instance', instance,
        'terms', terms, 'terms_rank', rank, 'world', text(world), 'opened', text(now),
        'timeout', text(timeout), 'timeout_text', timeout_text, 'timeout_rank', rank,
        'servers', step.servers, 'due', text(step.due))
    call('PEXPIRE', STEP, text(timeout + result_ttl))
    call('ZADD', OPEN, text(now + timeout), number)
    keep(OPEN, timeout)
    keep(JOB, math.max(job_ttl, timeout + result_ttl))
    keep(ABORTED_ATTEMPTS, job_ttl)
  end

  local differs = disagreement(step, terms)
  if step.state == 'a' then return answer(step) end
  if step.state == 'c' then
    if differs then return {'refused', 'terms', differs} end
    return contribution ~= '' and take(step, contribution) or answer(step)
  end
  if differs then
    abort(step, FAILED_PRECONDITION, 'ranks must declare the same: ' .. differs)
    return answer(step)
  end
  if timeout < step.timeout then
    step.timeout, step.timeout_text, step.timeout_rank = timeout, timeout_text, rank
    call('HSET', STEP, 'timeout', text(timeout), 'timeout_text', timeout_text, 'timeout_rank', rank)
    if due_by(step, step.opened + timeout) then
      tell('T', generation, number, step, ' ' .. text(math.max(0, step.due - now)))
    end
    tick(step)
    if step.state ~= 'o' then return answer(step) end
  end
  local is_new = not string.find(step.servers, ' ' .. server, 1, true)
  if is_new then step.servers = step.servers .. ' ' .. server end
  local taken = contribution ~= '' and take(step, contribution)
  -- (Where that commits it, nobody has to be told of it any more.)
  if is_new and step.state == 'o' then call('HSET', STEP, 'servers', step.servers) end
  if taken then return taken end
  if call('HEXISTS', SUMS, rank) == 0 then
    local value = call('HGET', CALLS, rank)
    if not value or string.sub(value, 1, 1) == 'L' then value = 'T' end
    if not string.find(value .. ' ', ' ' .. token .. ' ', 1, true) then
      call('HSET', CALLS, rank, value .. ' ' .. token)
      keep(CALLS, timeout + result_ttl)
      due_by(step, now + lease + grace)
    end
  end
  return answer(step)
end

if op == 'join' then
  return join(ARGV[15], tonumber(ARGV[16]), ARGV[17], tonumber(ARGV[18]), ARGV[19], ARGV[20] == '1',
      tonumber(ARGV[21]), ARGV[22], ARGV[23], ARGV[24])
end

-- ---- what follows a join ----

-- The step that the call came to; null, and what became of it, where another is in its place.
local function mine()
  local step = load(STEP)
  if step and less(attempt, step.attempt) then
    return nil, {'aborted', text(ABORTED), 'attempt ' .. step.attempt .. ' of the step has begun'}
  end
  if not step or step.attempt ~= attempt or (id ~= '' and step.id ~= id) then return nil, {'gone'} end
  if step.state == 'o' then tick(step) end
  return step
end

local function contribute(contribution)
  local step, instead = mine()
  if not step then return instead end
  if step.state == 'a' then return answer(step) end
  return take(step, contribution)
end

-- kind: lost, cancelled, or ended with `code` and `why`.
local function leave(kind, code, why)
  local step, instead = mine()
  if not step then return instead end
  if step.state ~= 'o' then return answer(step) end
  local taken = call('HGET', SUMS, rank)
  if taken and string.sub(taken, 1, #token + 1) ~= token .. ' ' then return answer(step) end
  local value = call('HGET', CALLS, rank) or ''
  local from, to = string.find(value .. ' ', ' ' .. token .. ' ', 1, true)
  -- Neither here nor there: it has left before, or never came.
  if not taken and not from then return answer(step) end
  if kind == 'cancelled' then
    abort(step, ABORTED, 'rank ' .. rank .. ' cancelled its call')
  elseif kind == 'ended' then
    abort(step, code, why)
  elseif from then
    value = string.sub(value, 1, from - 1) .. string.sub(value, to)
    if value == 'T' then
      call('HSET', CALLS, rank, 'L ' .. text(now))
      due_by(step, now + grace)
      tick(step)
      if step.state == 'o' then tell('T', generation, number, step, ' ' .. text(grace)) end
    else
      call('HSET', CALLS, rank, value)
    end
  end
  return answer(step)
end

-- With `bury`, of a server whose calls were in the step when Redis forgot it: the attempt must not be
-- opened again.
local function check(bury, secret, known_generation, known_over)
  local step, instead = mine()
  if step then return answer(step) end
  if bury and instead[1] == 'gone' then
    if not job_generation then
      call('HSET', JOB, 'secret', secret, 'generation', generation)
      job_generation = generation
    end
    recall(known_generation, known_over)
    note_aborted(attempt)
    keep_job()
  end
  return instead
end

if op == 'contribute' then
  return contribute(ARGV[15])
elseif op == 'leave' then
  return leave(ARGV[15], tonumber(ARGV[16]), ARGV[17])
elseif op == 'check' then
  return check(ARGV[15] == '1', ARGV[16], ARGV[17], ARGV[18])
end
return redis.error_reply('ERR gradclip: unknown operation')
