package agent

import (
	"net/http"
	"slices"
	"strings"
)

// Methods whose result is a card.
var cardMethods = []string{"agent/getAuthenticatedExtendedCard", "GetExtendedAgentCard"}

// methods are those of 0.3 (specification section 7) and 1.0 (section 9.4), and whether an agent may see a request twice.
var methods = map[string]bool{
	"message/send": false, "message/stream": false, "tasks/cancel": false, "tasks/resubscribe": false,
	"tasks/get": true, "tasks/list": true, "agent/getAuthenticatedExtendedCard": true,
	"tasks/pushNotificationConfig/set": false, "tasks/pushNotificationConfig/get": true, "tasks/pushNotificationConfig/list": true, "tasks/pushNotificationConfig/delete": false,
	"SendMessage": false, "SendStreamingMessage": false, "CancelTask": false, "SubscribeToTask": false,
	"GetTask": true, "ListTasks": true, "GetExtendedAgentCard": true,
	"CreateTaskPushNotificationConfig": false, "GetTaskPushNotificationConfig": true, "ListTaskPushNotificationConfigs": true, "DeleteTaskPushNotificationConfig": false,
}

// safe reports whether an agent may see a request of the method twice.
func safe(method string) bool { return methods[method] }

// misspelt reports whether a method is one of the protocol's but for case: an agent could take it for that, and rules would not.
func misspelt(method string) bool {
	if _, known := methods[method]; known {
		return false
	}
	for known := range methods {
		if strings.EqualFold(known, method) {
			return true
		}
	}
	return false
}

// ofMCP reports whether a method is MCP's and not A2A's.
func ofMCP(method string) bool {
	if slices.Contains([]string{"initialize", "ping", "server/discover"}, method) {
		return true
	}
	for _, family := range []string{"notifications/", "tools/", "prompts/", "resources/", "completion/", "logging/", "subscriptions/", "sampling/", "elicitation/", "roots/"} {
		if strings.HasPrefix(method, family) {
			return true
		}
	}
	return false
}

// versionOf is the version of A2A that a client names, in the header or the query (specification 1.0, section 3.6.1); "" for none.
func versionOf(r *http.Request) string {
	if values, ok := r.Header["A2a-Version"]; ok {
		return strings.Join(values, ",")
	}
	return r.URL.Query().Get("A2A-Version")
}

// isVersion reports whether v is of the form that versions of A2A have. What stands in a query can hold anything.
func isVersion(v string) bool {
	for _, c := range []byte(v) {
		if (c < '0' || c > '9') && c != '.' {
			return false
		}
	}
	return len(v) <= 20
}
