package upstream

import (
	"context"
	"errors"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// subscriptions are the resources that one session of a shared channel has subscribed to.
type subscriptions struct {
	uris map[string]bool
	size int
}

func (s *subscriptions) has(uri string) bool { return s != nil && s.uris[uri] }

const (
	maxSubscribed    = 16 << 20  // bytes that the subscriptions of a shared channel take in all
	maxSubscribedOne = 256 << 10 // and those of one session
	subscriptionSize = 128       // of each, beside its URI
)

// subscribe sends a session's resources/subscribe or unsubscribe over a shared channel, which has one client: us. The peer need not
// hear that one session leaves what another wants.
func (o *owned) subscribe(ctx context.Context, r *Request, m *mcp.Message, sn *session, ch *channel, id string) (*Response, error) {
	uri := m.URI.String()
	if m.Method == "resources/unsubscribe" {
		if !ch.unwant(id, uri) {
			return jsonBody(mcp.AppendResult(nil, m.RawID(), nil)), nil
		}
		res, err := o.ask(ctx, r, m, sn, ch, id)
		ch.restore(uri)
		return res, err
	}
	first, err := ch.want(id, uri)
	if err != nil {
		return jsonBody(mcp.AppendError(nil, m.RawID(), mcp.CodeInternal, err.Error(), nil)), nil
	}
	res, err := o.ask(ctx, r, m, sn, ch, id)
	if first && (NotSent(err) || err == nil && isRefusal(res)) {
		ch.unwant(id, uri)
	}
	return res, err
}

// want notes what a session subscribes to. first: it had not before. An error is for the client.
func (c *channel) want(from, uri string) (first bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.subscribed[from]
	if s.has(uri) {
		return false, nil
	}
	size := len(uri) + subscriptionSize
	switch {
	case s != nil && s.size+size > maxSubscribedOne, size > maxSubscribedOne:
		return false, errors.New("the session has as many subscriptions as it may have to resources of this target; unsubscribe from some")
	case c.subscribes+size > maxSubscribed:
		return false, errors.New("the sessions at this target have as many subscriptions as they may have together; try again later")
	}
	if s == nil {
		s = &subscriptions{uris: map[string]bool{}}
		c.subscribed[from] = s
	}
	s.uris[uri] = true
	s.size += size
	c.subscribes += size
	c.wanted[uri]++
	return true, nil
}

// unwant undoes want. It reports whether no session wants the resource any more.
func (c *channel) unwant(from, uri string) (nobody bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unwantLocked(from, uri)
}

func (c *channel) unwantLocked(from, uri string) (nobody bool) {
	if s := c.subscribed[from]; s.has(uri) {
		size := len(uri) + subscriptionSize
		delete(s.uris, uri)
		s.size -= size
		c.subscribes -= size
		if len(s.uris) == 0 {
			delete(c.subscribed, from)
		}
		if c.wanted[uri]--; c.wanted[uri] == 0 {
			delete(c.wanted, uri)
		}
	}
	return c.wanted[uri] == 0
}

// restore subscribes again to what a session began to want while the peer was told that nobody does.
func (c *channel) restore(uri string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wanted[uri] > 0 {
		c.sayLocked("resources/subscribe", uri)
	}
}

// inherit takes over what the sessions of a channel that ended had subscribed to, and tells the peer.
func (c *channel) inherit(old *channel) {
	old.mu.Lock()
	subscribed, wanted, subscribes := old.subscribed, old.wanted, old.subscribes
	old.subscribed, old.wanted, old.subscribes = map[string]*subscriptions{}, map[string]int{}, 0
	old.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subscribed, c.wanted, c.subscribes = subscribed, wanted, subscribes
	for uri := range wanted {
		c.sayLocked("resources/subscribe", uri)
	}
}

// forget drops what is known of a session of a shared channel, and lets the peer drop what only that one wanted.
func (c *channel) forget(from string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.subscribed[from]; s != nil {
		for uri := range s.uris {
			if c.unwantLocked(from, uri) {
				c.sayLocked("resources/unsubscribe", uri)
			}
		}
	}
	for s, session := range c.listeners {
		if session == from {
			s.fail(ErrClosed)
		}
	}
}

// sayLocked makes a request of our own about a resource, whose answer nobody waits for. It is on its way in the order of c.mu.
func (c *channel) sayLocked(method, uri string) {
	if c.err != nil {
		return
	}
	c.seq++
	id := c.freshLocked(c.takenLocked)
	key, _ := idKey(id)
	c.forgetLocked(key)
	c.pipe.post(mcp.AppendRequest(nil, id, method, append(mcp.AppendString([]byte(`{"uri":`), uri), '}')))
}
