-- With the argument "pause" each connection waits for a millisecond before it asks again.
function init(args)
  if args[1] == "pause" then
    delay = function() return 1 end
  end
end

-- What wrk tells at its end, as JSON: times in microseconds, and which part of a core it had.
function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '{"per_second": %f, "requests": %d, "failed": %d, "busy": %f, "p50_us": %f, "p99_us": %f, "p999_us": %f}\n',
    summary.requests / summary.duration * 1e6, summary.requests, failed, os.clock() / summary.duration * 1e6,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
