package upstream

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// pipe carries messages to the peer of a channel. What comes from the peer goes to channel.receive, and its end to
// channel.fail.
type pipe interface {
	// send hands over one message. An answer of the transport itself that is no plain acceptance is returned, for
	// the caller to see (an HTTP status); nil otherwise.
	send(ctx context.Context, msg []byte, r *Request) (*Response, error)
	// post hands over a message of our own without waiting.
	post(msg []byte)
	// leave says that close is about to be called.
	leave()
	// close ends the connection politely, and returns when it is over or ctx is.
	close(ctx context.Context)
}

const (
	backlogMessages = 256 // that wait for the GET stream to open
	backlogBytes    = 1 << 20
	backlogsBytes   = 64 << 20 // of all sessions at one target
	maxForgotten    = 4096
	maxForgottenKey = 64 << 10 // bytes of all of them
)

// channel tells the messages apart that share one duplex connection: which answer belongs to which call, and where
// goes what the peer says on its own.
//
// Ids and progress tokens pass byte for byte where they are plain and unique among the open ones; others, and all on
// a shared channel, are replaced on the way there and put back on the way here.
type channel struct {
	pipe    pipe
	shared  atomic.Bool // several sessions use it, so nothing may reach a session but what is certainly its own
	junk    atomic.Bool // something came that is no message
	lim     mcp.Limits
	queue   int // bytes that may wait for one reader
	log     *slog.Logger
	lines   allowance // of warnings about what the peer says
	started time.Time

	mu         sync.Mutex // guards what is below
	calls      map[string]*call
	tokens     map[string]*call
	forgotten  map[string]bool // calls whose caller left: their ids are taken until the peer answers
	forgetting int             // bytes of forgotten's keys
	seq        int64
	err        error // why the connection ended; nil: it lives
	standalone *stream
	listeners  map[*stream]string        // shared: the GET streams, with their sessions
	subscribed map[string]*subscriptions // shared: by session
	wanted     map[string]int            // shared: by how many sessions, by URI
	subscribes int                       // shared: what subscribed takes, in bytes
	backlog    [][]byte
	backlogged int
	kept       *atomic.Int64 // backlogged of all channels to the target
	used       time.Time     // when a caller last came or went
	refused    bool          // it was asked server/discover, and is not of the stateless era
}

// call is one request that the peer has not answered.
type call struct {
	key      string // of its id, as the peer has it
	caller   string // key of the id that the caller gave it
	id       []byte // the caller's own bytes, if they were replaced
	tokenKey string
	token    []byte
	listen   bool
	from     string // session, on a shared channel
	seq      int64
	out      *stream
}

func newChannel(cfg *Config, log *slog.Logger, shared bool) *channel {
	c := &channel{
		queue: cfg.MaxQueued, lim: mcp.Limits{Bytes: cfg.MaxMessage}, log: log, started: time.Now(),
		calls: map[string]*call{}, tokens: map[string]*call{}, forgotten: map[string]bool{},
		listeners: map[*stream]string{}, subscribed: map[string]*subscriptions{}, wanted: map[string]int{}, used: time.Now(), kept: &atomic.Int64{},
	}
	c.shared.Store(shared)
	return c
}

var silent = slog.New(slog.DiscardHandler)

// sparing is the log for what the peer can bring about as often as it likes.
func (c *channel) sparing() *slog.Logger {
	switch dropped, ok := c.lines.take(); {
	case !ok:
		return silent
	case dropped > 0:
		return c.log.With("dropped", dropped)
	}
	return c.log
}

// open registers a request and returns it with the message to send.
func (c *channel) open(m *mcp.Message, from string) (*call, []byte, error) {
	k := &call{from: from, listen: m.Method == "subscriptions/listen", out: newStream(c.queue)}
	var plain, tokenPlain bool
	k.key, plain = idKey(m.RawID())
	k.caller = k.key
	token := m.Meta.ProgressToken.Of(m.Body)
	if len(token) > 0 {
		k.tokenKey, tokenPlain = idKey(token)
	}
	var edits mcp.Edits

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, nil, c.err
	}
	c.seq++
	c.used = time.Now()
	k.seq = c.seq
	if c.shared.Load() || !plain || c.takenLocked(k.key) {
		k.id = append([]byte(nil), m.RawID()...)
		own := c.freshLocked(c.takenLocked)
		k.key, _ = idKey(own)
		edits.Replace(m.ID, own)
	}
	if k.tokenKey != "" {
		taken := func(key string) bool { return c.tokens[key] != nil }
		if c.shared.Load() || !tokenPlain || taken(k.tokenKey) {
			k.token = append([]byte(nil), token...)
			own := c.freshLocked(taken)
			k.tokenKey, _ = idKey(own)
			edits.Replace(m.Meta.ProgressToken, own)
		}
		c.tokens[k.tokenKey] = k
	}
	c.calls[k.key] = k
	return k, edits.Apply(nil, m.Body), nil
}

func (c *channel) takenLocked(key string) bool { return c.calls[key] != nil || c.forgotten[key] }

// freshLocked makes an id that is not taken. On a shared channel all are ours, so that numbers do, which are what
// peers are used to.
func (c *channel) freshLocked(taken func(key string) bool) []byte {
	for n := c.seq; ; n++ {
		raw := strconv.AppendInt(nil, n, 10)
		if !c.shared.Load() {
			raw = []byte(`"sluice-` + string(raw) + `"`)
		}
		if key, _ := idKey(raw); !taken(key) {
			return raw
		}
	}
}

// finishLocked takes a call off the books.
func (c *channel) finishLocked(k *call) {
	delete(c.calls, k.key)
	if k.tokenKey != "" && c.tokens[k.tokenKey] == k {
		delete(c.tokens, k.tokenKey)
	}
	c.used = time.Now()
}

// leave is called when nobody waits for a call any more. If it has no answer yet, a stateless one is cancelled; an
// answer that still comes is dropped.
func (c *channel) leave(k *call) {
	c.mu.Lock()
	if c.calls[k.key] != k {
		c.mu.Unlock()
		return
	}
	c.finishLocked(k)
	c.forgetLocked(k.key)
	cancel := c.shared.Load() && k.from == "" && c.err == nil
	c.mu.Unlock()
	if cancel {
		c.pipe.post(mcp.AppendNotification(nil, "notifications/cancelled", append(append([]byte(`{"requestId":`), k.rawKey()...), '}')))
	}
}

// forgetLocked drops the answer to an id when it comes, and keeps the id from being used till then.
func (c *channel) forgetLocked(key string) {
	if len(c.forgotten) >= maxForgotten || c.forgetting+len(key) > maxForgottenKey {
		clear(c.forgotten) // a peer that answers nothing; its ids are ours or the caller's problem
		c.forgetting = 0
	}
	if !c.forgotten[key] {
		c.forgotten[key] = true
		c.forgetting += len(key)
	}
}

// recallLocked is the end of forgetLocked: the answer came.
func (c *channel) recallLocked(key string) {
	if c.forgotten[key] {
		delete(c.forgotten, key)
		c.forgetting -= len(key)
	}
}

// unsent takes back a call whose message never left.
func (c *channel) unsent(k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[k.key] == k {
		c.finishLocked(k)
	}
}

// rawKey is the id as the peer has it.
func (k *call) rawKey() []byte {
	if k.key[0] == 's' {
		return mcp.AppendString(nil, k.key[1:])
	}
	return []byte(k.key[1:])
}

// cancelled rewrites a caller's notifications/cancelled to the id that the peer knows, and ends the call: a peer that stops owes it
// no answer (2025-11-25, Cancellation), and until the session's end nothing else would end it. Nil: nothing to send.
func (c *channel) cancelled(m *mcp.Message, from string) []byte {
	key, _ := idKey(m.RequestID.Of(m.Body))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.calls {
		if k.caller == key && k.from == from {
			c.finishLocked(k)
			c.forgetLocked(k.key)
			k.out.fail(io.EOF)
			if k.id == nil {
				return m.Body
			}
			var edits mcp.Edits
			edits.Replace(m.RequestID, k.rawKey())
			return edits.Apply(nil, m.Body)
		}
	}
	if c.shared.Load() {
		return nil // it could only be another session's
	}
	return m.Body
}

// attach opens the GET stream. An older one of the same session ends: its client has come back.
func (c *channel) attach(from string) (*stream, error) {
	s := newStream(c.queue)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	c.used = time.Now()
	if c.shared.Load() {
		for old, session := range c.listeners {
			if session == from {
				old.fail(ErrClosed)
				delete(c.listeners, old)
			}
		}
		c.listeners[s] = from
		return s, nil
	}
	if c.standalone != nil {
		c.standalone.fail(ErrClosed)
	}
	c.standalone = s
	for _, msg := range c.backlog {
		s.push(msg, false)
	}
	c.dropBacklogLocked()
	return s, nil
}

// detach ends the GET stream; what its reader did not take waits for the next one.
func (c *channel) detach(s *stream) {
	rest := s.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used = time.Now()
	delete(c.listeners, s)
	if c.standalone != s {
		return
	}
	c.standalone = nil
	for _, msg := range rest {
		c.keepLocked(msg)
	}
}

// keepLocked keeps a message until a GET stream opens; the oldest go first where there are too many.
func (c *channel) keepLocked(msg []byte) {
	if c.err != nil {
		return // nobody can open one
	}
	c.backlog = append(c.backlog, msg)
	c.backlogged += len(msg)
	c.kept.Add(int64(len(msg)))
	for len(c.backlog) > backlogMessages || c.backlogged > backlogBytes || c.kept.Load() > backlogsBytes && len(c.backlog) > 0 {
		c.backlogged -= len(c.backlog[0])
		c.kept.Add(-int64(len(c.backlog[0])))
		c.backlog[0], c.backlog = nil, c.backlog[1:]
	}
}

func (c *channel) dropBacklogLocked() {
	c.kept.Add(-int64(c.backlogged))
	c.backlog, c.backlogged = nil, 0
}

// fail ends the channel: all who wait are told err.
func (c *channel) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.dropBacklogLocked()
	for _, k := range c.calls {
		k.out.fail(err)
	}
	clear(c.calls)
	clear(c.tokens)
	if c.standalone != nil {
		c.standalone.fail(err)
	}
	for s := range c.listeners {
		s.fail(err)
	}
}

// ended tells why the channel ended; nil: it lives.
func (c *channel) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// retire ends the channel if nothing has been under way for a while: no call gets in between. Its connection is the
// caller's to close.
func (c *channel) retire(idle time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || len(c.calls) > 0 || c.standalone != nil || len(c.listeners) > 0 || time.Since(c.used) < idle {
		return false
	}
	c.err = ErrClosed
	c.dropBacklogLocked()
	return true
}

// idleFor is how long nothing was under way; 0 while something is.
func (c *channel) idleFor() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.calls) > 0 || c.standalone != nil || len(c.listeners) > 0 {
		return 0
	}
	return time.Since(c.used)
}

// serves reports whether something of a session of a shared channel is under way.
func (c *channel) serves(from string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.calls {
		if k.from == from {
			return true
		}
	}
	for _, session := range c.listeners {
		if session == from {
			return true
		}
	}
	return false
}

// refuse notes that the peer is not of the stateless era.
func (c *channel) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = true
}

// spare reports whether a session may have the channel for its own.
func (c *channel) spare() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused && c.err == nil && len(c.calls) == 0 && len(c.listeners) == 0 && c.standalone == nil
}
