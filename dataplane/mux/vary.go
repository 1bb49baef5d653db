package mux

import (
	"strings"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// private reports whether what a target answers is for this caller alone, whatever the target says of it: it was let in, its
// rules look at who calls, or the target sees who does. Nobody may hand on such an answer to another.
func (x *Request) private(t *snapshot.Target) bool {
	return x.Principal != nil || t.Policy.ReadsPrincipal() || t.Policy.PerCaller() || len(t.Config.GetForwardHeaders()) > 0
}

// restricts reports whether the target's own cacheScope must be made private on the way: results of the stateless era that
// have one and are not merged.
func (x *Request) restricts(t *snapshot.Target) bool {
	if !x.stateless() || x.Message == nil || !x.private(t) {
		return false
	}
	switch x.Message.Method {
	case "resources/read", "server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list":
		return true
	}
	return false
}

// vary is all that a list request to a target says beside who calls, what the client can, and what is asked: what was
// answered to one is no answer to another that differs in it. Mostly empty.
func (x *Request) vary(t *snapshot.Target) string {
	key := x.HTTP.Header.Get("Accept-Language")
	if names := t.Config.GetForwardHeaders(); len(names) > 0 {
		var b strings.Builder
		b.WriteString(key)
		for _, name := range names {
			b.WriteString("\x00" + strings.Join(x.HTTP.Header.Values(name), "\x01"))
		}
		key = b.String()
	}
	if t.Policy.PerCaller() {
		call := x.call(t, policy.None, "")
		key += "\x02" + t.Policy.Varying(&call)
	}
	return key
}
