package upstream

import (
	"bytes"
	"strings"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// receive takes one message from the peer, or a batch of them. It never waits. The message is ours from here on.
func (c *channel) receive(msg []byte) {
	m, err := mcp.Scan(msg, c.lim)
	if err != nil {
		c.junk.Store(true)
		c.sparing().Warn("target sent what is no message", "bytes", len(msg), "err", err)
		return
	}
	switch m.Kind {
	case mcp.Batch:
		all, err := mcp.ScanBatch(msg, c.lim)
		if err != nil {
			c.sparing().Warn("target sent what is no message", "bytes", len(msg), "err", err)
			return
		}
		for i := range all {
			all[i].Body = bytes.Clone(all[i].Body) // one that waits must not keep the others
			c.dispatch(&all[i])
		}
	default:
		c.dispatch(&m)
	}
}

func (c *channel) dispatch(m *mcp.Message) {
	switch m.Kind {
	case mcp.Response:
		c.answered(m)
	case mcp.Request:
		c.asked(m)
	case mcp.Notification:
		c.notified(m)
	default:
		c.sparing().Warn("target sent what is no message", "bytes", len(m.Body), "err", "neither request nor response")
	}
}

// answered brings a response to its call.
func (c *channel) answered(m *mcp.Message) {
	c.mu.Lock()
	k := c.answeredLocked(m)
	c.mu.Unlock()
	if k == nil {
		c.log.Debug("target answered what nobody waits for")
		return
	}
	body := m.Body
	if k.id != nil {
		body = c.restoreID(m, k)
	}
	k.out.push(body, true)
}

func (c *channel) answeredLocked(m *mcp.Message) *call {
	id := m.RawID()
	if isNull(id) {
		// An error about a message that the peer could not read. With one call open it can only be that.
		if !m.Error.Present() || len(c.calls) != 1 {
			return nil
		}
		for _, k := range c.calls {
			c.finishLocked(k)
			k.id = append([]byte(nil), k.callerID()...)
			return k
		}
	}
	key, _ := idKey(id)
	k := c.calls[key]
	if k == nil {
		c.recallLocked(key)
		return nil
	}
	c.finishLocked(k)
	return k
}

// callerID is the id as the caller gave it.
func (k *call) callerID() []byte {
	if k.id != nil {
		return k.id
	}
	return k.rawKey()
}

// restoreID puts the caller's id back, and that of a subscription into its result.
func (c *channel) restoreID(m *mcp.Message, k *call) []byte {
	var edits mcp.Edits
	if !m.ID.Present() {
		return mcp.AppendError(nil, k.id, mcp.CodeInternal, "the target could not read the request", m.Error.Of(m.Body))
	}
	edits.Replace(m.ID, k.id)
	if k.listen && m.Result.Present() {
		if raw := m.Result.Of(m.Body); raw[0] == '{' {
			edits.Replace(m.Result, replaceSubscriptionID(raw, k.id, c.lim))
		}
	}
	return edits.Apply(nil, m.Body)
}

// asked takes a request of the peer. Pings are answered here: they ask whether this end lives, and it does.
func (c *channel) asked(m *mcp.Message) {
	if m.Method == "ping" {
		c.pipe.post(mcp.AppendResult(nil, m.RawID(), nil))
		return
	}
	if c.shared.Load() {
		c.sparing().Warn("target asked something of a client; a shared process cannot", "method", m.Method)
		c.pipe.post(mcp.AppendError(nil, m.RawID(), mcp.CodeMethodNotFound, "this process serves several clients and can ask none of them", nil))
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routeLocked(m)
}

// onlyLocked is the call that a message is of which names none: the only one that is open; nil if there are several. A listen is no such
// call: what it brings names it.
func (c *channel) onlyLocked() *call {
	var only *call
	for _, k := range c.calls {
		if k.listen {
			continue
		}
		if only != nil {
			return nil
		}
		only = k
	}
	return only
}

// routeLocked finds a reader for what names no call: the only open call; else the GET stream; a request goes to the
// oldest call before it waits for a GET stream that may never open.
func (c *channel) routeLocked(m *mcp.Message) {
	msg := m.Body
	if k := c.onlyLocked(); k != nil && k.out.push(msg, false) {
		return
	}
	if c.standalone != nil && c.standalone.push(msg, false) {
		return
	}
	if m.Kind == mcp.Request && len(c.calls) > 0 {
		var oldest *call
		for _, k := range c.calls {
			if oldest == nil || k.seq < oldest.seq {
				oldest = k
			}
		}
		if oldest.out.push(msg, false) {
			return
		}
	}
	c.keepLocked(msg)
}

// notified takes a notification of the peer.
func (c *channel) notified(m *mcp.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.Meta.SubscriptionID.Present():
		c.subscribedLocked(m)
	case m.Method == "notifications/progress":
		c.progressLocked(m)
	case strings.HasSuffix(m.Method, "/list_changed"), m.Method == "notifications/resources/updated":
		c.changedLocked(m)
	case c.shared.Load():
		if k := c.onlyLocked(); k != nil {
			k.out.push(m.Body, false)
		} // else it could be another session's secret: dropped
	default:
		c.routeLocked(m)
	}
}

// subscribedLocked brings what a subscriptions/listen asked for to it.
func (c *channel) subscribedLocked(m *mcp.Message) {
	key, _ := idKey(m.Meta.SubscriptionID.Of(m.Body))
	k := c.calls[key]
	if k == nil {
		return
	}
	body := m.Body
	if k.id != nil {
		var edits mcp.Edits
		edits.Replace(m.Meta.SubscriptionID, k.id)
		body = edits.Apply(nil, body)
	}
	k.out.push(body, false)
}

func (c *channel) progressLocked(m *mcp.Message) {
	key, _ := idKey(m.ProgressToken.Of(m.Body))
	k := c.tokens[key]
	if k == nil {
		return // late: its call is over
	}
	body := m.Body
	if k.token != nil {
		var edits mcp.Edits
		edits.Replace(m.ProgressToken, k.token)
		body = edits.Apply(nil, body)
	}
	k.out.push(body, false)
}

// changedLocked brings news of lists and resources to the GET streams. They concern no call; the only open call has
// to do where there is no GET stream.
func (c *channel) changedLocked(m *mcp.Message) {
	if !c.shared.Load() {
		if c.standalone == nil || !c.standalone.push(m.Body, false) {
			c.routeLocked(m)
		}
		return
	}
	uri := ""
	if m.Method == "notifications/resources/updated" {
		uri = m.URI.String()
	}
	for s, session := range c.listeners {
		if uri == "" || c.subscribed[session].has(uri) {
			s.push(m.Body, false)
		}
	}
}
