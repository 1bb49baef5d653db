package newclient

import (
	"github.com/sluicegate/sluice/dataplane/mcp"
)

// ask is a request of the target that waits for the client's answer.
type ask struct {
	id    []byte // the target's own, raw
	key   string // the client's name for it
	entry []byte // what the client is asked: method and params
}

func (a *ask) size() int { return 128 + len(a.id) + len(a.entry) }

// refusal is the answer to a request that the client cannot be asked; ok if it can.
func (c *client) refusal(m *mcp.Message) (code int, text string, ok bool) {
	return c.refuses(m.Method, m.Params.Of(m.Body))
}

// can reports whether the client can be asked what an entry of inputRequests asks.
func (c *client) can(entry []byte) bool {
	var method string
	var params []byte
	members(entry, func(name string, value []byte) {
		switch name {
		case "method":
			text, _ := mcp.Unquote(value)
			method = string(text)
		case "params":
			params = value
		}
	})
	_, _, ok := c.refuses(method, params)
	return ok
}

func (c *client) refuses(method string, params []byte) (code int, text string, ok bool) {
	switch method {
	case "elicitation/create":
		mode := "form"
		members(params, func(name string, value []byte) {
			if text, is := mcp.Unquote(value); is && name == "mode" {
				mode = string(text)
			}
		})
		switch {
		case !c.form && !c.url:
			return mcp.CodeMethodNotFound, "the client has no elicitation", false
		case mode == "form" && c.form, mode == "url" && c.url:
			return 0, "", true
		}
		return mcp.CodeInvalidParams, "the client has no elicitation of this mode", false
	case "sampling/createMessage":
		if !c.sampling {
			return mcp.CodeMethodNotFound, "the client has no sampling", false
		}
		uses := false
		members(params, func(name string, _ []byte) { uses = uses || name == "tools" || name == "toolChoice" })
		if uses && !c.tools {
			return mcp.CodeInvalidParams, "the client has no tools in sampling", false
		}
		return 0, "", true
	case "roots/list":
		if !c.roots {
			return mcp.CodeMethodNotFound, "the client has no roots", false
		}
		return 0, "", true
	}
	return mcp.CodeMethodNotFound, "the client has no such method", false
}

// question is a target's request as an entry of inputRequests. What 2026-07-28 does not have is left out: the id of a URL
// elicitation, whose outcome is the retry, and what makes the request a task.
func question(m *mcp.Message) ([]byte, error) {
	params := m.Params.Of(m.Body)
	out := mcp.AppendString([]byte(`{"method":`), m.Method)
	if !object(params) { // there are clients that cannot do without
		return append(out, `,"params":{}}`...), nil
	}
	stripped, err := withoutTask(params)
	if err != nil {
		return nil, err
	}
	return append(append(append(out, `,"params":`...), stripped...), '}'), nil
}

func withoutTask(params []byte) ([]byte, error) {
	var e mcp.Edits
	err := e.RemoveMembers(params, mcp.Span{Start: 0, End: int32(len(params))}, func(name []byte) bool {
		return string(name) == "elicitationId" || string(name) == "task"
	})
	if err != nil {
		return nil, err
	}
	return e.Apply(nil, params), nil
}

// elicitations are the questions of an error -32042: the URLs that the target wants visited before it is called again.
// Nil: it names none.
func elicitations(m *mcp.Message) [][]byte {
	var all [][]byte
	members(m.Error.Of(m.Body), func(name string, data []byte) {
		if name != "data" {
			return
		}
		members(data, func(name string, list []byte) {
			if name != "elicitations" {
				return
			}
			_ = mcp.Elements(list, mcp.Limits{}, func(params []byte) error {
				if !object(params) {
					return nil
				}
				stripped, err := withoutTask(params)
				if err == nil {
					all = append(all, append(append([]byte(`{"method":"elicitation/create","params":`), stripped...), '}'))
				}
				return err
			})
		})
	})
	return all
}
