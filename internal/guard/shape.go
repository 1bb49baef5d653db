package guard

import "bytes"

// A Shape says where the text in a JSON value is. Elements of an array stand where the array does.
type Shape struct {
	text    bool              // strings are text
	free    bool              // the sender's own data: names and numbers say something too
	base64  bool              // strings are text unless they could be base64
	words   []string          // strings are text unless they are one of these words of the protocol
	members map[string]*Shape // by exact name: what is misspelt is no field of the protocol, but text
	meta    bool              // members of the protocol's own are not looked at
	rest    *Shape            // of all other members; nil: as this one
}

// nothing reports that no text can stand anywhere in the value.
func (s *Shape) nothing() bool { return !s.text && s.members == nil && s.rest == nil }

// looks reports whether the string raw, undecoded, has to be looked at.
func (s *Shape) looks(raw []byte) bool {
	if !s.text {
		return false
	}
	for _, w := range s.words {
		if string(raw) == w {
			return false
		}
	}
	return !s.base64 || !couldBeBase64(raw)
}

// member is the shape of a member's value.
func (s *Shape) member(name []byte) *Shape {
	if m, ok := s.members[string(name)]; ok {
		return m
	}
	if s.meta && bytes.HasPrefix(name, []byte("io.modelcontextprotocol/")) {
		return none
	}
	if s.rest != nil {
		return s.rest
	}
	return s
}

// known reports whether name is one of the protocol's, which says nothing.
func (s *Shape) known(name []byte) bool {
	_, ok := s.members[string(name)]
	return ok || s.meta && bytes.HasPrefix(name, []byte("io.modelcontextprotocol/"))
}

// couldBeBase64 is true for what a decoder takes. Text with a blank in it, or much else, is none.
func couldBeBase64(raw []byte) bool {
	for _, c := range raw {
		if !isAlnum(c) && c != '+' && c != '/' && c != '=' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

type members = map[string]*Shape

func words(w ...string) *Shape { return &Shape{text: true, words: w} }

// with is a copy of s in which some members have shapes of their own.
func (s *Shape) with(m members) *Shape {
	out := *s
	out.members = members{}
	for _, from := range []members{s.members, m} {
		for name, shape := range from {
			out.members[name] = shape
		}
	}
	return &out
}

// The pieces that MCP's messages of all revisions are made of (schema.ts of 2024-11-05 to 2026-07-28).
var (
	none = &Shape{}                       // fixed fields: ids, URIs, cursors, media types
	free = &Shape{text: true, free: true} // what a sender says in a form of its own

	role   = words("user", "assistant", "system")
	status = words("working", "input_required", "completed", "failed", "cancelled", "submitted")

	meta = &Shape{text: true, free: true, meta: true, rest: free, members: members{
		"progressToken": none, "traceparent": none, "tracestate": none, "baggage": none, "ui/resourceUri": none,
		"io.modelcontextprotocol/related-task": {text: true, free: true, rest: free, members: members{"taskId": none}},
		"ui":                                   {text: true, free: true, rest: free, members: members{"resourceUri": none}},
	}}
	icons       = &Shape{text: true, members: members{"src": none, "mimeType": none, "sizes": none, "theme": none}}
	annotations = &Shape{text: true, members: members{"audience": role, "lastModified": none}}

	// A content block of any type: text, image, audio, resource, resource_link, tool_use, tool_result.
	block = recursive(func(self *Shape) *Shape {
		return &Shape{text: true, rest: free, members: members{
			"type":     words("text", "image", "audio", "resource", "resource_link", "tool_use", "tool_result"),
			"mimeType": none, "uri": none, "id": none, "toolUseId": none, "data": {text: true, base64: true},
			"annotations": annotations, "icons": icons, "_meta": meta,
			"resource": contents, "content": self,
		}}
	})
	contents = &Shape{text: true, rest: free, members: members{
		"uri": none, "mimeType": none, "blob": {text: true, base64: true}, "_meta": meta, "annotations": annotations, "icons": icons,
	}}
	message = &Shape{text: true, rest: free, members: members{"role": role, "content": block, "_meta": meta}}

	// A JSON Schema: its text is what models read, and no more of it may change than what stays a schema.
	schema = recursive(func(self *Shape) *Shape {
		named := &Shape{rest: self}
		return &Shape{text: true, members: members{
			"type": none, "format": none, "pattern": none, "required": none, "enum": none, "const": none, "dependentRequired": none,
			"$ref": none, "$schema": none, "$id": none, "$anchor": none, "$dynamicRef": none, "$dynamicAnchor": none, "$vocabulary": none,
			"contentEncoding": none, "contentMediaType": none, "x-mcp-header": none,
			"properties": named, "patternProperties": named, "$defs": named, "definitions": named, "dependentSchemas": named,
			"default": free, "examples": free,
		}}
	})
	tool = &Shape{text: true, rest: free, members: members{
		"name": none, "inputSchema": schema, "outputSchema": schema, "icons": icons, "_meta": meta,
		"execution": {text: true, members: members{"taskSupport": words("forbidden", "optional", "required")}},
	}}
	prompt = &Shape{text: true, rest: free, members: members{
		"name": none, "icons": icons, "_meta": meta, "arguments": {text: true, rest: free, members: members{"name": none}},
	}}
	resource = &Shape{text: true, rest: free, members: members{
		"uri": none, "uriTemplate": none, "mimeType": none, "annotations": annotations, "icons": icons, "_meta": meta,
	}}
	task = &Shape{text: true, rest: free, members: members{
		"taskId": none, "status": status, "createdAt": none, "lastUpdatedAt": none, "_meta": meta,
	}}

	// What a server asks of a client: params of sampling, elicitation and roots.
	asking = &Shape{text: true, rest: free, members: members{
		"_meta": meta, "task": task, "messages": message, "tools": tool,
		"includeContext": words("none", "thisServer", "allServers"), "modelPreferences": {text: true, rest: free},
		"toolChoice":      {text: true, members: members{"mode": words("auto", "required", "none")}},
		"requestedSchema": schema, "mode": words("form", "url"), "url": none, "elicitationId": none,
	}}
	inputRequests = &Shape{rest: &Shape{text: true, rest: free, members: members{"method": none, "params": asking}}}

	// What a client answers to it.
	answer = &Shape{text: true, rest: free, members: members{
		"_meta": meta, "role": role, "action": words("accept", "decline", "cancel"),
		"stopReason": words("endTurn", "stopSequence", "maxTokens", "toolUse"),
		"roots":      {text: true, rest: free, members: members{"uri": none, "_meta": meta}},
		"content": {text: true, free: true, rest: free, members: members{
			"type": words("text", "image", "audio", "tool_use", "tool_result"), "data": {text: true, base64: true}, "_meta": meta,
		}},
	}}

	// What a method of the protocol results in.
	result = recursive(func(self *Shape) *Shape {
		return &Shape{text: true, rest: free, members: members{
			"resultType": words("complete", "input_required", "task"), "cacheScope": words("public", "private"),
			"nextCursor": none, "requestState": none, "taskId": none, "status": status, "createdAt": none, "lastUpdatedAt": none,
			"protocolVersion": none, "supportedVersions": none, "capabilities": none, "serverInfo": none,
			"_meta": meta, "content": block, "contents": contents, "messages": message, "structuredContent": free,
			"tools": tool, "prompts": prompt, "resources": resource, "resourceTemplates": resource,
			"task": task, "tasks": task, "inputRequests": inputRequests, "result": self,
		}}
	})
	failure = &Shape{text: true, rest: free, members: members{"code": none}}
)

// recursive makes a shape that holds itself.
func recursive(f func(self *Shape) *Shape) *Shape {
	self := &Shape{}
	*self = *f(self)
	return self
}

// envelope is a JSON-RPC message with the given shapes of params and result.
func envelope(params, result *Shape) *Shape {
	return &Shape{text: true, rest: free, members: members{
		"jsonrpc": none, "id": none, "method": none, "params": params, "result": result, "error": failure,
	}}
}

// ofClients are the messages that clients send: by method, the shape of params.
var ofClients = func() map[string]*Shape {
	retry := members{"inputResponses": {text: true, rest: answer}} // of the stateless era, on what may ask
	item := &Shape{rest: none, members: members{"arguments": free, "_meta": meta}}
	shapes := map[string]*Shape{
		"tools/call":               item.with(retry),
		"prompts/get":              item.with(retry),
		"resources/read":           (&Shape{rest: none, members: members{"_meta": meta}}).with(retry),
		"tasks/update":             (&Shape{rest: none, members: members{"_meta": meta}}).with(retry),
		"completion/complete":      {rest: none, members: members{"argument": {text: true, rest: free, members: members{"name": none}}, "context": free, "_meta": meta}},
		"notifications/progress":   {text: true, rest: free, members: members{"progressToken": none, "_meta": meta}},
		"notifications/cancelled":  {text: true, rest: free, members: members{"requestId": none, "_meta": meta}},
		"initialize":               none,
		"ping":                     none,
		"server/discover":          none,
		"logging/setLevel":         none,
		"subscriptions/listen":     none,
		"resources/subscribe":      none,
		"resources/unsubscribe":    none,
		"tools/list":               none,
		"prompts/list":             none,
		"resources/list":           none,
		"resources/templates/list": none,
		"tasks/get":                none,
		"tasks/result":             none,
		"tasks/cancel":             none,
		"tasks/list":               none,
	}
	for method, s := range shapes {
		shapes[method] = envelope(s, answer)
	}
	return shapes
}()

// FromClient is where text stands in a message from a client. method is empty for a response. Of methods that no revision
// has all is looked at.
func FromClient(method string) *Shape {
	if s, ok := ofClients[method]; ok {
		return s
	}
	return unknownFromClient
}

var unknownFromClient = envelope(vendor, answer)

// vendor are params of a method of somebody's own.
var vendor = &Shape{text: true, free: true, rest: free, members: members{"_meta": meta}}

var ofServers = map[string]*Shape{
	"sampling/createMessage":                   envelope(asking, result),
	"elicitation/create":                       envelope(asking, result),
	"roots/list":                               envelope(asking, result),
	"notifications/progress":                   envelope(&Shape{text: true, rest: free, members: members{"progressToken": none, "_meta": meta}}, result),
	"notifications/message":                    envelope(&Shape{text: true, rest: free, members: members{"level": none, "_meta": meta}}, result),
	"notifications/cancelled":                  envelope(&Shape{text: true, rest: free, members: members{"requestId": none, "_meta": meta}}, result),
	"notifications/resources/updated":          envelope(&Shape{text: true, rest: free, members: members{"uri": none, "_meta": meta}}, result),
	"notifications/elicitation/complete":       envelope(&Shape{text: true, rest: free, members: members{"elicitationId": none, "_meta": meta}}, result),
	"notifications/subscriptions/acknowledged": envelope(none, result),
	"notifications/tools/list_changed":         envelope(&Shape{rest: none, members: members{"_meta": meta}}, result),
	"notifications/prompts/list_changed":       envelope(&Shape{rest: none, members: members{"_meta": meta}}, result),
	"notifications/resources/list_changed":     envelope(&Shape{rest: none, members: members{"_meta": meta}}, result),
	"notifications/tasks/status":               envelope(task, result),
	"notifications/tasks":                      envelope(task.with(members{"result": result, "error": failure, "inputRequests": inputRequests}), result),
	"":                                         envelope(vendor, result),
}

var (
	unknownFromServer = envelope(vendor, result)
	vendorResult      = envelope(vendor, vendor)
)

// FromServer is where text stands in a message from a server. method is empty for a response to a method of the protocol.
func FromServer(method string) *Shape {
	if s, ok := ofServers[method]; ok {
		return s
	}
	return unknownFromServer
}

// Batch is where text stands in an array of messages of any sort: everywhere.
var Batch = vendorResult

// Response is where text stands in a server's response to method: of one that no revision has, everywhere.
func Response(method string) *Shape {
	if _, known := ofClients[method]; known || method == "" {
		return ofServers[""]
	}
	return vendorResult
}

// ModelArgument is where a tool's arguments name a model: the member `model`.
var ModelArgument = &Shape{rest: none, members: members{"model": {text: true, rest: none}}}

// ModelHints is where parameters of sampling name models.
var ModelHints = &Shape{rest: none, members: members{
	"modelPreferences": {rest: none, members: members{"hints": {rest: none, members: members{"name": {text: true, rest: none}}}}},
}}

// Card is where text stands in an agent's card, and in what A2A's messages are made of: everywhere but in the protocol's own
// fields (of v0.3 or v1.0), and in the bytes of files.
var Card = recursive(func(self *Shape) *Shape {
	m := members{
		"data": free, "metadata": free, "bytes": {text: true, base64: true}, "raw": {text: true, base64: true},
		"role": words("user", "agent", "ROLE_USER", "ROLE_AGENT"), "pushNotificationConfig": none,
	}
	for _, fixed := range []string{
		"kind", "id", "messageId", "contextId", "taskId", "artifactId", "referenceTaskIds", "extensions", "state", "timestamp",
		"uri", "url", "mimeType", "mediaType", "acceptedOutputModes", "pageToken", "nextPageToken",
		"preferredTransport", "transport", "protocolBinding", "protocolVersion", "defaultInputModes", "defaultOutputModes", "inputModes", "outputModes",
	} {
		m[fixed] = none
	}
	return &Shape{text: true, rest: self, members: m}
})

// Agent is where text stands in a message of A2A, of either direction and revision.
var Agent = envelope(Card, Card)

// AgentSaid is where a message of A2A, of either direction, holds what it says in pieces: what a reader joins with the piece before.
var AgentSaid = func() *Shape {
	of := recursive(func(self *Shape) *Shape {
		m := members{"text": free}
		for _, other := range []string{"metadata", "data"} {
			m[other] = none
		}
		return &Shape{rest: self, members: m}
	})
	return &Shape{rest: none, members: members{"params": of, "result": of}}
}()

// Artifact is the id of the artifact that a message of an agent's stream adds to, as it is written (0.3: result.artifact.artifactId,
// 1.0: result.artifactUpdate.artifact.artifactId); nil for none. It aliases message.
func Artifact(message []byte) []byte {
	artifact := within(within(message, "result"), "artifact")
	if artifact == nil {
		artifact = within(within(within(message, "result"), "artifactUpdate"), "artifact")
	}
	return within(artifact, "artifactId")
}

// within is a member's value, nil if there is none.
func within(object []byte, member string) (value []byte) {
	_ = Members(object, func(name []byte, from, to int) error {
		if string(name) == member {
			value = object[from:to]
		}
		return nil
	})
	return value
}

// said are what a notification says to people, apart from who says it.
var said = map[string]*Shape{
	"notifications/progress": {rest: none, members: members{"params": {rest: none, members: members{"message": free}}}},
	"notifications/message":  {rest: none, members: members{"params": {rest: none, members: members{"data": free}}}},
}

// Said is where a notification of method, notifications/progress or notifications/message, holds what it says: what a reader
// joins with what the one before it said.
func Said(method string) *Shape { return said[method] }

// Speaker tells one series of such notifications from another: it is the progressToken or logger of message, as they are
// written. It aliases message.
func Speaker(message []byte) []byte {
	var who []byte
	_ = Members(message, func(name []byte, from, to int) error {
		if string(name) != "params" {
			return nil
		}
		params := message[from:to]
		return Members(params, func(name []byte, from, to int) error {
			if string(name) == "progressToken" || string(name) == "logger" {
				who = params[from:to]
			}
			return nil
		})
	})
	return who
}
