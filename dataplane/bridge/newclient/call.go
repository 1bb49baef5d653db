package newclient

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// call is one request of a client as the target has it. It may outlast the request: while the client is asked, it is
// parked, and the client's next request reads it on. Whatever the target says goes through in, to the one round that is
// served.
type call struct {
	p      *peer
	whose  session.Scope // of the client
	method string
	id     []byte          // as the target knows it, raw
	key    string          // of the id
	token  []byte          // the progress token as the target knows it, raw; nil: none
	whole  bool            // it lists tools from the first on
	ctx    context.Context // of the exchange with the target
	cancel context.CancelFunc
	in     chan *item
	room   *semaphore.Weighted // for what waits in it, in bytes
	head   chan struct{}       // closed when the target begins an event stream

	// What follows belongs to the round that is served, and to nobody while the call is parked.
	asks  []*ask
	first time.Time // when the oldest of asks came that the client was not asked yet
	last  time.Time // when the newest came
	named int       // asks so far, to name the next
	turn  bool      // it holds the session's turn
	held  int       // guarded by b.mu; of b.asked, while it is parked

	mu    sync.Mutex
	state state          // guarded by mu
	round uint64         // guarded by mu; from 1
	park  session.CallID // guarded by mu; zero: was never parked
	timer *time.Timer    // guarded by mu; ends a parked call
}

type state uint8

const (
	waiting state = iota // for its turn
	running
	parked
	over
)

// start sends a client's request in a session and serves its first round. The session is left when the call is over.
func (f *stateless) start(ctx context.Context, p *peer, r *upstream.Request, m *mcp.Message, again *session.Call) (*upstream.Response, error) {
	k := &call{
		p: p, whose: f.caller.Scope, method: m.Method, token: bytes.Clone(m.Meta.ProgressToken.Of(m.Body)),
		in: make(chan *item, 64), room: semaphore.NewWeighted(maxWaiting), head: make(chan struct{}), round: 1,
	}
	k.whole = m.Method == "tools/list" && !m.Cursor.Present()
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	id, token := k.register(m.RawID())
	body, err := outbound(m, id, token, again)
	if err != nil {
		k.end()
		return refused(err), nil
	}
	if err := k.takeTurn(ctx); err != nil {
		k.end()
		return nil, &upstream.Error{Op: "wait for the session", Target: f.t.Resource, Err: err}
	}
	go k.exchange(body, r)
	return k.serve(ctx, f.round(r, m, 1))
}

// register makes the call findable by its id. In a session an id may be used once only (2025-11-25, basic: requests), and a
// progress token by one request at a time: in one that is shared both are the proxy's, and returned.
func (k *call) register(id []byte) (ownID, ownToken []byte) {
	s := k.p
	s.mu.Lock()
	defer s.mu.Unlock()
	k.id = bytes.Clone(id) // a call may wait for long, and the message that it came with be large
	if !s.alone {
		s.seq++
		ownID = fmt.Appendf(nil, `"sluice-%d"`, s.seq)
		k.id = ownID
		if k.token != nil {
			k.token, ownToken = ownID, ownID
		}
	}
	k.key = idKey(k.id)
	s.calls[k.key] = k
	return ownID, ownToken
}

// takeTurn waits until no other call of the session runs, where requests of the target could not be told apart else.
func (k *call) takeTurn(ctx context.Context) error {
	if k.p.serial.Load() && asking(k.method) {
		select {
		case k.p.turn <- struct{}{}:
			k.turn = true
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-k.ctx.Done():
			return errRetired
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state == waiting {
		k.state = running
	}
	return nil
}

func (k *call) giveTurn() {
	if k.turn {
		k.turn = false
		<-k.p.turn
	}
}

// abandon cancels the call, if it still serves the given round: in 2026-07-28 a client that leaves has cancelled, as has who gave up
// waiting in the target's own era.
func (k *call) abandon(round uint64) {
	k.mu.Lock()
	if k.state != running && k.state != waiting || k.round != round {
		k.mu.Unlock()
		return
	}
	k.state = over
	k.mu.Unlock()
	k.giveUp("nobody waits for the answer any more")
}

// giveUp tells the target, and then ends the call. Its state is over already.
func (k *call) giveUp(why string) {
	params := append(append([]byte(`{"requestId":`), k.id...), `,"reason":`...)
	body := mcp.AppendNotification(nil, "notifications/cancelled", append(mcp.AppendString(params, why), '}'))
	k.p.b.later(func(ctx context.Context) {
		_ = k.p.tell(ctx, "notifications/cancelled", body, nil) // what closes now tells it too
		k.release()
	})
}

// end is the end of a call that has its response, or will have none.
func (k *call) end() {
	k.mu.Lock()
	if k.state == over {
		k.mu.Unlock()
		return
	}
	k.state = over
	k.mu.Unlock()
	k.release()
}

// release gives back what the call holds. It is called once, with the state over.
func (k *call) release() {
	k.cancel()
	k.giveTurn()
	s := k.p
	s.mu.Lock()
	if s.calls[k.key] == k {
		delete(s.calls, k.key)
	}
	s.mu.Unlock()
	s.leave()
}
