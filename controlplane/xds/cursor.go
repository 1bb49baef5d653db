package xds

import (
	"slices"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A cursor is a proxy's place in one tenant. Its stream alone changes it; what others read is changed under the tenant's lock.
type cursor struct {
	stream *stream
	tenant *tenant

	// Guarded by tenant.mu for others.
	counts  bool             // the client takes Config, so it counts as a proxy of the tenant
	sent    [2]int64         // of each type, everything up to this revision has been sent or is in queue
	first   [2]*opening      // of each type, what one who begins is still to be sent; nil: nothing
	open    bool             // a revision is being sent or has not been answered
	acked   int64            // last revision answered
	refused []*xdsv1.Refusal // what that answer refused
	leaving bool             // the tenant is no longer the proxy's

	// The stream's own: about the revision in open.
	queue     []frame          // what is left to send of it
	complete  bool             // queue holds its end
	low, high uint64           // numbers of its frames' nonces
	heard     uint64           // last number answered
	serves    int64            // what its answer says is served; 0: nothing, it has no Config
	nacked    []*xdsv1.Refusal // by answers to it so far
	departed  bool             // it removes the tenant

	seen   int64 // last revision that anything was encoded from
	queued bool  // is in stream.turns
	marked bool  // is in stream.marks; guarded by stream.mu
}

// reachedLocked: answered for the revision, or past it with nothing to answer. A skip is not a missing ACK.
func (c *cursor) reachedLocked(revision int64) bool {
	if c.acked >= revision {
		return true
	}
	return !c.open && c.first == [2]*opening{} && min(c.sent[configs], c.sent[secrets]) >= revision
}

// beginLocked lets a type start afresh.
func (c *cursor) beginLocked(set int, claims []claim) {
	c.first[set] = &opening{claims: claims, claimed: len(claims) > 0}
	c.sent[set] = c.tenant.head
}

// next returns the next frame for this tenant, or nil if there is none now: nothing to say, or an answer is due.
func (c *cursor) next() (*frame, error) {
	if len(c.queue) == 0 && !c.departed && !(c.open && c.complete) {
		if err := c.advance(); err != nil {
			return nil, err
		}
	}
	if len(c.queue) == 0 {
		return nil, nil
	}
	f := c.queue[0]
	c.queue[0] = frame{} // its body may be large
	if c.queue = c.queue[1:]; len(c.queue) == 0 {
		c.queue = nil
	}
	return &f, nil
}

// advance queues frames of an opening, or else the difference to the head, or else the removals of a tenant that is leaving.
func (c *cursor) advance() error {
	t := c.tenant
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.leaving {
		c.departLocked()
		return nil
	}
	if c.openLocked() {
		return nil
	}
	return c.differLocked()
}

// openLocked queues the next frames of an opening, and reports whether there were any left.
func (c *cursor) openLocked() bool {
	for _, set := range sendOrder {
		if o := c.first[set]; o != nil {
			if bodies := o.next(&c.tenant.sets[set], c.tenant.name); len(bodies) > 0 {
				c.queueLocked(set, c.tenant.head, bodies)
				return true
			}
		}
	}
	return false
}

// differLocked queues what leads from what was sent to the head, and the Commit: the end of a revision.
func (c *cursor) differLocked() error {
	t := c.tenant
	begins := c.first != [2]*opening{}
	if c.sent == [2]int64{t.head, t.head} && !begins {
		return nil
	}
	for _, set := range sendOrder {
		sub, s := &c.stream.subscribed[set], &t.sets[set]
		var bodies [][]byte
		ok := true
		switch {
		case sub.wildcard && set == configs:
			bodies, ok = s.difference(c.sent[set], &t.commit)
		case sub.wildcard:
			bodies, ok = s.difference(c.sent[set], nil)
		case len(sub.names) > 0:
			bodies, ok = c.namedLocked(set, sub.names)
		}
		if !ok {
			return errLost
		}
		c.queueLocked(set, t.head, bodies)
	}
	c.first = [2]*opening{}
	c.sent = [2]int64{t.head, t.head}
	if c.complete, c.serves = true, 0; c.counts {
		c.serves = t.head
	}
	c.closeLocked()
	return nil
}

// namedLocked is the difference for a client that subscribed to names, of which the Commit may be one.
func (c *cursor) namedLocked(set int, names map[string]bool) ([][]byte, bool) {
	t := c.tenant
	entries, ok := t.sets[set].since(c.sent[set])
	if !ok {
		return nil, false
	}
	ch := chunker{set: set}
	t.sets[set].choose(entries, names, &ch)
	if set == configs && names[t.commit.Name] && c.sent[set] < t.head {
		ch.resource(&t.commit)
	}
	return ch.bodies, true
}

// departLocked queues the removal of all that the client may hold, the Commit last, and nothing that it never had.
func (c *cursor) departLocked() {
	t, seen := c.tenant, c.seen
	for _, set := range sendOrder {
		sub, ch := &c.stream.subscribed[set], chunker{set: set}
		for _, name := range c.heldLocked(set, max(c.sent[set], seen)) {
			if (sub.wildcard || sub.names[name]) && name != t.commit.Name {
				ch.removed(name)
			}
		}
		if set == configs && (sub.names[t.commit.Name] || sub.wildcard && (seen > 0 || len(ch.bodies) > 0)) {
			ch.removed(t.commit.Name)
		}
		c.queueLocked(set, c.sent[set], ch.bodies)
	}
	c.departed, c.complete, c.serves = true, true, 0
	c.first = [2]*opening{}
	c.closeLocked()
}

// heldLocked lists the names of a type that the client may hold, sorted: none that came after revision limit.
func (c *cursor) heldLocked(set int, limit int64) []string {
	s, o := &c.tenant.sets[set], c.first[set]
	var names []string
	if o != nil {
		names = append(names, o.removed...)
		for _, cl := range o.claims {
			names = append(names, string(cl.name))
		}
	}
	for r := range s.all {
		if r.created <= limit && (o == nil || o.claimed || o.sent(s, r.Name)) {
			names = append(names, r.Name)
		}
	}
	entries, _ := s.since(c.sent[set]) // if the log is cut, the Commit's removal still ends the tenant
	for _, e := range entries {
		if e.existed { // removed since; perhaps there again, which is another incarnation
			names = append(names, e.name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (c *cursor) queueLocked(set int, revision int64, bodies [][]byte) {
	for _, body := range bodies {
		nonce := c.stream.nonce(c.tenant.name, revision)
		if !c.open {
			c.open, c.complete, c.low = true, false, c.stream.nonces
		}
		c.high = c.stream.nonces
		c.seen = max(c.seen, c.tenant.head)
		c.queue = append(c.queue, frame{body: body, set: set, revision: revision, nonce: nonce})
	}
}

// answer takes in the answer to a nonce by its number; refused is empty for an ACK. Numbers of no frame of the revision
// in open are stale and change nothing.
func (c *cursor) answer(number uint64, refused []*xdsv1.Refusal) {
	if !c.open || number < c.low || number > c.high {
		return
	}
	c.heard = max(c.heard, number)
	c.nacked = append(c.nacked, refused[:min(len(refused), maxRefusals-len(c.nacked))]...) // a frame may be answered any number of times
	c.tenant.mu.Lock()
	defer c.tenant.mu.Unlock()
	c.closeLocked()
}

// closeLocked ends the revision in open if its last frame is answered, or if there was nothing to send.
func (c *cursor) closeLocked() {
	if !c.complete || c.open && c.heard < c.high {
		return
	}
	if c.open && c.serves > 0 {
		c.acked, c.refused = c.serves, c.nacked
	}
	c.open, c.complete, c.nacked = false, false, nil
	c.tenant.progressLocked()
}

// countsLocked tells whether the cursor is that of a proxy that serves the tenant now.
func (c *cursor) countsLocked() bool { return c.counts && !c.leaving && !c.stream.ended.Load() }
