-- What wrk sends: the requests of a file in turn, each line "method path token body", separated by tabs. What it says
-- at the end is one line for a program: no format for people has to be taken apart.
local requests = {}
local current = 0

function init(args)
   for line in io.lines(args[1]) do
      local method, path, token, body = line:match("^(%S+)\t(%S+)\t(%S*)\t(.*)$")
      local headers = { ["Accept"] = "application/json" }
      if token ~= "" then headers["Authorization"] = "Bearer " .. token end
      if body ~= "" then headers["Content-Type"] = "application/json" else body = nil end
      requests[#requests + 1] = wrk.format(method, path, headers, body)
   end
end

function request()
   current = current % #requests + 1
   return requests[current]
end

function done(summary, latency, _)
   local e = summary.errors
   io.write(string.format(
      'RESULT {"requests": %d, "microseconds": %d, "bytes": %d, "refused": %d, "broken": %d, "p50": %d, "p99": %d}\n',
      summary.requests, summary.duration, summary.bytes, e.status, e.connect + e.read + e.write + e.timeout,
      latency:percentile(50), latency:percentile(99)))
end
