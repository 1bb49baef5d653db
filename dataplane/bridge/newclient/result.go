package newclient

import (
	"net/http"
	"strconv"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// cacheable are the methods whose results say how long they may be kept.
func cacheable(method string) bool {
	switch method {
	case "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read", "server/discover":
		return true
	}
	return false
}

// asking reports whether a result of the method may ask the client for input.
func asking(method string) bool {
	return method == "tools/call" || method == "prompts/get" || method == "resources/read"
}

// hints are what a result of a target without cache hints says of itself.
func (s *peer) hints(method string) (ttl time.Duration) {
	if mcp.Methods(method).Routing == mcp.FanList {
		return s.t.Config.GetListCache().AsDuration()
	}
	return 0
}

// result makes a target's result one of 2026-07-28, for a request with the given id.
func (s *peer) result(msg *mcp.Message, method string, id []byte) ([]byte, error) {
	var e mcp.Edits
	replaceID(&e, msg, id)
	if !object(msg.Result.Of(msg.Body)) {
		return e.Apply(nil, msg.Body), nil // nonsense, but the target's own
	}
	want := [][2]string{{"resultType", `"complete"`}}
	if cacheable(method) {
		want = append(want, [2]string{"ttlMs", strconv.FormatInt(s.hints(method).Milliseconds(), 10)}, [2]string{"cacheScope", `"private"`})
	}
	var meta, tools mcp.Span
	has := map[string]bool{}
	err := mcp.MemberSpans(msg.Body, msg.Result, nil, func(name []byte, value mcp.Span) error {
		switch string(name) {
		case "_meta":
			meta = value
		case "tools":
			tools = value
		}
		for _, w := range want {
			if w[0] == string(name) {
				has[w[0]] = true
				e.Replace(value, []byte(w[1]))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var add []byte
	member := func(name, value string) {
		if len(add) > 0 {
			add = append(add, ',')
		}
		add = append(append(mcp.AppendString(add, name), ':'), value...)
	}
	for _, w := range want {
		if !has[w[0]] {
			member(w[0], w[1])
		}
	}
	if own, err := s.tagged(&e, msg, meta); err != nil {
		return nil, err
	} else if own != "" {
		member("_meta", own)
	}
	if len(add) > 0 {
		e.InsertMembers(msg.Body, msg.Result, add)
	}
	if method == "tools/list" && tools.Present() {
		if err := s.toolList(&e, msg, tools); err != nil {
			return nil, err
		}
	}
	return e.Apply(nil, msg.Body), nil
}

// tagged puts the target's info into a result's _meta, or returns a _meta where the result has none.
func (s *peer) tagged(e *mcp.Edits, msg *mcp.Message, meta mcp.Span) (own string, err error) {
	if !object(s.info) {
		return "", nil
	}
	if !meta.Present() {
		return `{"` + mcp.MetaServerInfo + `":` + string(s.info) + `}`, nil
	}
	if !object(meta.Of(msg.Body)) {
		return "", nil
	}
	has := false
	err = mcp.MemberSpans(msg.Body, meta, nil, func(name []byte, _ mcp.Span) error {
		has = has || string(name) == mcp.MetaServerInfo
		return nil
	})
	if err == nil && !has {
		e.Insert(msg.Body, meta, mcp.MetaServerInfo, s.info)
	}
	return "", err
}

// toolList takes off tools what is of tasks as the era of sessions has them, hides tools that run as such a task alone,
// and learns which arguments stand in headers.
func (s *peer) toolList(e *mcp.Edits, msg *mcp.Message, tools mcp.Span) error {
	if raw := tools.Of(msg.Body); raw[0] != '[' {
		return nil
	}
	hidden := map[mcp.Span]bool{}
	var strip []mcp.Span
	err := mcp.ElementSpans(msg.Body, tools, func(tool mcp.Span) error {
		if !object(tool.Of(msg.Body)) {
			return nil
		}
		return mcp.MemberSpans(msg.Body, tool, nil, func(name []byte, value mcp.Span) error {
			if string(name) != "execution" {
				return nil
			}
			strip = append(strip, tool)
			members(value.Of(msg.Body), func(name string, v []byte) {
				if text, _ := mcp.Unquote(v); name == "taskSupport" && string(text) == "required" {
					hidden[tool] = true
				}
			})
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, tool := range strip {
		if hidden[tool] {
			continue
		}
		if err := e.RemoveMembers(msg.Body, tool, func(name []byte) bool { return string(name) == "execution" }); err != nil {
			return err
		}
	}
	if len(hidden) == 0 {
		return nil
	}
	return e.RemoveElements(msg.Body, tools, func(tool mcp.Span) bool { return hidden[tool] })
}

// failure makes a target's error one of 2026-07-28, for a request with the given id, and tells the status that goes
// with it.
func (s *peer) failure(msg *mcp.Message, status int, id []byte) (int, []byte) {
	var e mcp.Edits
	replaceID(&e, msg, id)
	code, _ := msg.ErrorCode()
	switch code {
	case mcp.CodeMethodNotFound:
		status = http.StatusNotFound
	case mcp.CodeResourceNotFound:
		s.recode(&e, msg, mcp.CodeInvalidParams)
	case mcp.CodeMissingCapability:
		status = http.StatusBadRequest
	case mcp.CodeHeaderMismatch, mcp.CodeUnsupportedVersion, mcp.CodeURLElicitation:
		// They would tell the client about its own request, or name versions that it does not talk to.
		s.recode(&e, msg, mcp.CodeInternal)
	}
	if status == http.StatusNotFound && code != mcp.CodeMethodNotFound {
		status = http.StatusOK
	}
	return status, e.Apply(nil, msg.Body)
}

func (s *peer) recode(e *mcp.Edits, msg *mcp.Message, code int) {
	_ = mcp.MemberSpans(msg.Body, msg.Error, nil, func(name []byte, value mcp.Span) error {
		if string(name) == "code" {
			e.Replace(value, strconv.AppendInt(nil, int64(code), 10))
		}
		return nil
	})
}

// replaceID puts the client's id into a response. Errors may come without one.
func replaceID(e *mcp.Edits, msg *mcp.Message, id []byte) {
	switch {
	case !msg.ID.Present():
		e.Insert(msg.Body, whole(msg), "id", id)
	case string(msg.RawID()) != string(id):
		e.Replace(msg.ID, id)
	}
}

// whole is the span of a message's object: blanks may stand around it.
func whole(msg *mcp.Message) mcp.Span {
	start := 0
	for msg.Body[start] != '{' {
		start++
	}
	return mcp.Span{Start: int32(start), End: int32(len(msg.Body))}
}
