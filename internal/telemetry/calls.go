package telemetry

import (
	"io"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes of calls, as the metric's label and the line say them.
const (
	OutcomeOK          = "ok"
	OutcomeError       = "error"           // the target answered with an error, or not at all
	OutcomeDenied      = "denied"          // a rule refused
	OutcomeUnauth      = "unauthenticated" // who calls could not be told
	OutcomeInvalid     = "invalid"         // the request was not good
	OutcomeUnavailable = "unavailable"     // nothing serves it now
	OutcomeCanceled    = "canceled"        // the client left
)

// Call is what is told about one call. Session ids have no place here. Empty fields are left out of the line.
type Call struct {
	// Start is when the call came; Duration how long it took.
	Start    time.Time
	Duration time.Duration

	Tenant, Route, Backend, Target string
	Revision                       int64
	// Method is MCP's or A2A's, e.g. `tools/call`; HTTP's for what is none. Name is that of the tool, prompt, URI or skill.
	Method, Name string
	// Principal is for people: [policy.Principal.Name].
	Principal string
	// Source is the client's address.
	Source string
	// Owner is the proxy that the call was forwarded to, and Peer the one that forwarded it here.
	Owner, Peer string
	// Verdict is `allow`, or `deny` by a rule or for want of a good credential; Rule is the one that decided.
	Verdict, Rule string
	// Status is the answer's; Upstream that of the target, 0 if it was not asked.
	Status, Upstream int
	// Outcome is one of the constants of this package.
	Outcome string
	// Err is without secrets.
	Err string
}

// Calls counts calls and writes a JSON line for each. Lines wait in buffers for up to a second.
type Calls struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	counters sync.Map // counterKey to prometheus.Counter: no lock and no hash of labels for each call
	timers   sync.Map // timerKey to prometheus.Observer

	out    io.Writer // nil: no lines
	outMu  sync.Mutex
	shards []shard // so that calls do not wait for one another
	stop   chan struct{}
	done   chan struct{}
}

type counterKey struct{ tenant, target, method, outcome string }

type timerKey struct{ tenant, target string }

type shard struct {
	mu  sync.Mutex // guards buf
	buf []byte
	_   [32]byte // keeps shards off one another's cache line
}

const (
	shardSize   = 32 << 10
	maxText     = 1024 // bytes of one field in a line
	flushPeriod = time.Second
)

// NewCalls registers the metrics and writes lines to out; if out is nil, there are none.
func NewCalls(r prometheus.Registerer, out io.Writer) *Calls {
	c := &Calls{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_calls_total", Help: "MCP calls by tenant, target, method and outcome.",
		}, []string{"tenant", "target", "method", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_call_duration_seconds", Help: "Duration of MCP calls until the end of the answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"tenant", "target"}),
		out:    out,
		shards: make([]shard, runtime.GOMAXPROCS(0)*2),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	r.MustRegister(c.total, c.duration)
	if out == nil {
		close(c.done)
	} else {
		go c.flushAll()
	}
	return c
}

// Done counts a call and writes its line. The caller may use *call again at once.
func (c *Calls) Done(call *Call) {
	key := counterKey{call.Tenant, call.Target, knownMethod(call.Method), call.Outcome}
	counter, ok := c.counters.Load(key)
	if !ok {
		counter, _ = c.counters.LoadOrStore(key, c.total.WithLabelValues(key.tenant, key.target, key.method, key.outcome))
	}
	counter.(prometheus.Counter).Inc()
	tkey := timerKey{call.Tenant, call.Target}
	timer, ok := c.timers.Load(tkey)
	if !ok {
		timer, _ = c.timers.LoadOrStore(tkey, c.duration.WithLabelValues(tkey.tenant, tkey.target))
	}
	timer.(prometheus.Observer).Observe(call.Duration.Seconds())
	if c.out == nil {
		return
	}
	s := &c.shards[rand.IntN(len(c.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = appendCall(s.buf, call)
	if len(s.buf) >= shardSize {
		c.write(s)
	}
}

// Forget drops a tenant's or a target's metrics once it is gone; an empty target means the whole tenant.
func (c *Calls) Forget(tenant, target string) {
	labels := prometheus.Labels{"tenant": tenant}
	if target != "" {
		labels["target"] = target
	}
	c.counters.Range(func(k, _ any) bool {
		if key := k.(counterKey); key.tenant == tenant && (target == "" || key.target == target) {
			c.counters.Delete(k)
		}
		return true
	})
	c.timers.Range(func(k, _ any) bool {
		if key := k.(timerKey); key.tenant == tenant && (target == "" || key.target == target) {
			c.timers.Delete(k)
		}
		return true
	})
	c.total.DeletePartialMatch(labels)
	c.duration.DeletePartialMatch(labels)
}

// Close writes what waits. No Done may follow.
func (c *Calls) Close() {
	close(c.stop)
	<-c.done
}

func (c *Calls) flushAll() {
	defer close(c.done)
	tick := time.NewTicker(flushPeriod)
	defer tick.Stop()
	for stopping := false; !stopping; {
		select {
		case <-tick.C:
		case <-c.stop:
			stopping = true
		}
		for i := range c.shards {
			s := &c.shards[i]
			s.mu.Lock()
			c.write(s)
			s.mu.Unlock()
		}
	}
}

// write wants the shard's mutex held. Lines are whole: shards take turns.
func (c *Calls) write(s *shard) {
	if len(s.buf) == 0 {
		return
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	_, _ = c.out.Write(s.buf) // a log that cannot be written has nobody to be told to
	s.buf = s.buf[:0]
}

// knownMethod keeps what clients make up out of the labels.
func knownMethod(m string) string {
	switch m {
	case "initialize", "ping", "server/discover", "tools/list", "tools/call", "prompts/list", "prompts/get",
		"resources/list", "resources/read", "resources/templates/list", "resources/subscribe", "resources/unsubscribe",
		"subscriptions/listen", "completion/complete", "logging/setLevel", "tasks/get", "tasks/update", "tasks/cancel", "tasks/list", "tasks/result",
		"notifications/initialized", "notifications/cancelled", "notifications/progress", "notifications/roots/list_changed",
		"message/send", "message/stream", "tasks/resubscribe", "agent/getAuthenticatedExtendedCard", // A2A 0.3
		"tasks/pushNotificationConfig/set", "tasks/pushNotificationConfig/get", "tasks/pushNotificationConfig/list", "tasks/pushNotificationConfig/delete",
		"SendMessage", "SendStreamingMessage", "GetTask", "ListTasks", "CancelTask", "SubscribeToTask", "GetExtendedAgentCard", // A2A 1.0
		"CreateTaskPushNotificationConfig", "GetTaskPushNotificationConfig", "ListTaskPushNotificationConfigs", "DeleteTaskPushNotificationConfig",
		"GET", "DELETE", "OPTIONS", "":
		return m
	}
	return "other"
}

func appendCall(b []byte, c *Call) []byte {
	b = append(b, `{"time":"`...)
	b = c.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, `","msg":"call"`...)
	for _, f := range [...]struct{ key, value string }{
		{"tenant", c.Tenant}, {"route", c.Route}, {"backend", c.Backend}, {"target", c.Target}, {"method", c.Method}, {"name", c.Name},
		{"principal", c.Principal}, {"source", c.Source}, {"owner", c.Owner}, {"peer", c.Peer}, {"verdict", c.Verdict}, {"rule", c.Rule}, {"outcome", c.Outcome}, {"err", c.Err},
	} {
		if f.value != "" {
			b = append(b, ',', '"')
			b = append(b, f.key...)
			b = append(b, '"', ':')
			b = appendString(b, f.value)
		}
	}
	for _, f := range [...]struct {
		key   string
		value int64
	}{{"revision", c.Revision}, {"status", int64(c.Status)}, {"upstream_status", int64(c.Upstream)}} {
		if f.value != 0 {
			b = append(b, ',', '"')
			b = append(b, f.key...)
			b = append(b, '"', ':')
			b = strconv.AppendInt(b, f.value, 10)
		}
	}
	b = append(b, `,"duration_ms":`...)
	b = strconv.AppendFloat(b, float64(c.Duration.Microseconds())/1000, 'f', -1, 64)
	return append(b, '}', '\n')
}

// appendString writes a JSON string. What is longer than maxText is cut: a client chooses names.
func appendString(b []byte, s string) []byte {
	cut := len(s) > maxText
	if cut {
		s = s[:maxText]
	}
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			if c == '"' || c == '\\' {
				b = append(b, '\\', c)
			} else {
				const hex = "0123456789abcdef"
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || r == '\u2028' || r == '\u2029' {
			b = append(b, s[start:i]...)
			b = append(b, `\ufffd`...)
			start = i + size
		}
		i += size
	}
	b = append(b, s[start:]...)
	if cut {
		b = append(b, "…"...)
	}
	return append(b, '"')
}
