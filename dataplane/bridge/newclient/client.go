package newclient

import (
	"github.com/sluicegate/sluice/dataplane/mcp"
)

// client is what a request says of the client: its capabilities decide what it can be asked.
type client struct {
	caps, info []byte // raw; caps is an object

	form, url bool // elicitation
	sampling  bool
	tools     bool // in sampling
	roots     bool
}

// clientOf reads the parts of _meta that the target does not get with each request.
func clientOf(m *mcp.Message) client {
	c := client{caps: m.Meta.ClientCapabilities.Of(m.Body), info: m.Meta.ClientInfo.Of(m.Body)}
	if len(c.caps) == 0 || c.caps[0] != '{' {
		c.caps = []byte("{}")
	}
	if len(c.info) == 0 || c.info[0] != '{' {
		c.info = []byte(`{"name":"sluice","version":"1"}`)
	}
	members(c.caps, func(name string, value []byte) {
		switch name {
		case "elicitation":
			if !object(value) {
				return
			}
			c.form = true // unless url alone is named
			members(value, func(mode string, of []byte) {
				c.url = c.url || mode == "url" && object(of)
			})
			if c.url {
				c.form = false
				members(value, func(mode string, of []byte) { c.form = c.form || mode == "form" && object(of) })
			}
		case "sampling":
			c.sampling = object(value)
			members(value, func(name string, of []byte) { c.tools = c.tools || name == "tools" && object(of) })
		case "roots":
			c.roots = object(value)
		}
	})
	return c
}

// asked reports whether the client can be asked anything.
func (c *client) asked() bool { return c.form || c.url || c.sampling || c.roots }

func object(raw []byte) bool { return len(raw) > 0 && raw[0] == '{' }

// members calls f with the members of an object that was scanned before; what is none has none.
func members(raw []byte, f func(name string, value []byte)) {
	_ = mcp.Members(raw, mcp.Limits{}, nil, func(name, value []byte) error {
		f(string(name), value)
		return nil
	})
}
