package mcp

import (
	"strings"
	"unicode"
)

// Routing says how a method finds its target among several.
type Routing uint8

// The routing classes.
const (
	Unknown    Routing = iota // no revision has it: goes on only where there is a single target
	Lifecycle                 // the gateway's own: initialize, server/discover, ping
	ByName                    // params.name, prefixed with the target's
	ByURI                     // params.uri
	ByRef                     // params.ref: its name or its uri
	FanList                   // a page of a merged list: params.cursor
	Broadcast                 // to every target that can: logging/setLevel, notifications of the client
	ByTask                    // params.taskId
	ByRequest                 // notifications/cancelled, notifications/progress: to where the request they name went
	Listen                    // subscriptions/listen: its filter is split by target
	FromServer                // only servers send it: sampling, elicitation, roots, and their notifications
)

// MethodInfo is what the gateway knows of a method.
type MethodInfo struct {
	Name         string
	Routing      Routing
	Notification bool
	Since, Until Revision // first and last revision that has it; Until "" means that the newest has it
	Capability   string   // the server capability that it needs: tools, prompts, resources, …; "": none
	List         List     // FanList: which
}

// In reports whether revision has the method, in either direction.
func (i MethodInfo) In(r Revision) bool {
	return i.Name != "" && r >= i.Since && (i.Until == "" || r <= i.Until)
}

// Methods returns what is known of a method; the zero MethodInfo if no revision has it.
func Methods(method string) MethodInfo {
	if i, ok := methodIndex[method]; ok {
		return methods[i]
	}
	return MethodInfo{}
}

const first, lastSession = V20241105, V20251125

// What a method needs of the server, and which revisions have it: the schemas of the revisions, and the tasks
// extension of 2026-07-28.
var methods = []MethodInfo{
	{Name: "initialize", Routing: Lifecycle, Since: first, Until: lastSession},
	{Name: "notifications/initialized", Routing: Lifecycle, Notification: true, Since: first, Until: lastSession},
	{Name: "ping", Routing: Lifecycle, Since: first, Until: lastSession},
	{Name: "server/discover", Routing: Lifecycle, Since: V20260728},

	{Name: "tools/list", Routing: FanList, List: Tools, Capability: "tools", Since: first},
	{Name: "tools/call", Routing: ByName, Capability: "tools", Since: first},
	{Name: "prompts/list", Routing: FanList, List: Prompts, Capability: "prompts", Since: first},
	{Name: "prompts/get", Routing: ByName, Capability: "prompts", Since: first},
	{Name: "resources/list", Routing: FanList, List: Resources, Capability: "resources", Since: first},
	{Name: "resources/templates/list", Routing: FanList, List: Templates, Capability: "resources", Since: first},
	{Name: "resources/read", Routing: ByURI, Capability: "resources", Since: first},
	{Name: "resources/subscribe", Routing: ByURI, Capability: "resources", Since: first, Until: lastSession},
	{Name: "resources/unsubscribe", Routing: ByURI, Capability: "resources", Since: first, Until: lastSession},
	{Name: "completion/complete", Routing: ByRef, Capability: "completions", Since: first},
	{Name: "logging/setLevel", Routing: Broadcast, Capability: "logging", Since: first, Until: lastSession},
	{Name: "subscriptions/listen", Routing: Listen, Since: V20260728},

	{Name: "tasks/get", Routing: ByTask, Capability: "tasks", Since: V20251125},
	{Name: "tasks/result", Routing: ByTask, Capability: "tasks", Since: V20251125, Until: lastSession},
	{Name: "tasks/cancel", Routing: ByTask, Capability: "tasks", Since: V20251125},
	{Name: "tasks/update", Routing: ByTask, Capability: "tasks", Since: V20260728},
	{Name: "tasks/list", Routing: FanList, List: Tasks, Capability: "tasks", Since: V20251125, Until: lastSession},

	{Name: "notifications/cancelled", Routing: ByRequest, Notification: true, Since: first},
	{Name: "notifications/progress", Routing: ByRequest, Notification: true, Since: first},
	{Name: "notifications/roots/list_changed", Routing: Broadcast, Notification: true, Since: first, Until: lastSession},

	{Name: "roots/list", Routing: FromServer, Since: first},
	{Name: "sampling/createMessage", Routing: FromServer, Since: first},
	{Name: "elicitation/create", Routing: FromServer, Since: V20250618},
	{Name: "notifications/message", Routing: FromServer, Notification: true, Since: first},
	{Name: "notifications/tools/list_changed", Routing: FromServer, Notification: true, Since: first},
	{Name: "notifications/prompts/list_changed", Routing: FromServer, Notification: true, Since: first},
	{Name: "notifications/resources/list_changed", Routing: FromServer, Notification: true, Since: first},
	{Name: "notifications/resources/updated", Routing: FromServer, Notification: true, Since: first},
	{Name: "notifications/subscriptions/acknowledged", Routing: FromServer, Notification: true, Since: V20260728},
	{Name: "notifications/elicitation/complete", Routing: FromServer, Notification: true, Since: V20251125, Until: lastSession},
	{Name: "notifications/tasks/status", Routing: FromServer, Notification: true, Since: V20251125, Until: lastSession},
	{Name: "notifications/tasks", Routing: FromServer, Notification: true, Since: V20260728},
}

var methodIndex = func() map[string]int {
	index := make(map[string]int, len(methods))
	for i, m := range methods {
		index[m.Name] = i
	}
	return index
}()

var foldedMethods = func() map[string]bool {
	folded := make(map[string]bool, len(methods))
	for _, m := range methods {
		folded[foldedMethod(m.Name)] = true
	}
	return folded
}()

// foldedMethod is a method without case, blanks and what does not show.
func foldedMethod(method string) string {
	visible := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, method)
	return string(foldAll([]byte(visible)))
}

// Disguised reports whether a method that no revision has is one to a server that reads names carelessly, such as
// Tools/Call: nothing that is asked about the method itself is asked about it.
func Disguised(method string) bool {
	_, known := methodIndex[method]
	return !known && foldedMethods[foldedMethod(method)]
}

// methodName is the method as a string; known ones cost no allocation.
func methodName(text []byte) string {
	if i, ok := methodIndex[string(text)]; ok {
		return methods[i].Name
	}
	return string(text)
}

// Target is the value that the message is routed by, which the stateless era repeats in Mcp-Name: the name, the
// uri or the task's id. A request whose method needs one and has none is refused with -32602. The zero Text
// means that the method needs none.
func (m *Message) Target() (Text, error) {
	var t Text
	var member string
	switch m.Info().Routing {
	case ByName:
		t, member = m.Name, "name"
	case ByURI:
		t, member = m.URI, "uri"
	case ByTask:
		t, member = m.TaskID, "taskId"
	default:
		return Text{}, nil
	}
	if !t.IsString() {
		err := refusal(400, CodeInvalidParams, "%s needs params.%s, a string", m.Method, member)
		err.ID = idOf(m)
		return Text{}, err
	}
	return t, nil
}

// LogLevels are the levels of logs, from the least (RFC 5424, section 6.2.1).
var LogLevels = []string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}
