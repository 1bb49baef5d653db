package agent

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// maxCard bounds a card.
const maxCard = 1 << 20

// maxInterfaces bounds those of a card, each of which gets an address that the client may have made long.
const maxInterfaces = 100

// jsonRPC is the one binding that is proxied, as cards name it.
const jsonRPC = "JSONRPC"

// A member of a JSON object; its value is raw.
type member struct {
	name  string
	value []byte
}

type object []member

func readObject(raw []byte, read ...string) (object, error) {
	var o object
	err := mcp.Members(raw, mcp.Limits{Bytes: maxCard}, read, func(name, value []byte) error {
		o = append(o, member{string(name), value})
		return nil
	})
	return o, err
}

func (o object) raw(name string) []byte {
	for i := range o {
		if o[i].name == name {
			return o[i].value
		}
	}
	return nil
}

// text is a member that is a string, "" for any other.
func (o object) text(name string) string {
	text, _ := mcp.Unquote(o.raw(name))
	return string(text)
}

// set changes a member that is there.
func (o object) set(name string, raw []byte) {
	for i := range o {
		if o[i].name == name {
			o[i].value = raw
		}
	}
}

func (o object) without(names ...string) object {
	return slices.DeleteFunc(o, func(m member) bool { return slices.Contains(names, m.name) })
}

func (o object) encode() []byte {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(mcp.AppendString(b, m.name), ':'), m.value...)
	}
	return append(b, '}')
}

// rewriteCard makes an agent's card the proxy's: of 0.3 (`url`, `additionalInterfaces`), 1.0 (`supportedInterfaces`), or of
// both. All interfaces that are proxied are at url, and others are gone; so are the skills that show, if it is not nil, says
// no to, and the signatures, which are over what the agent wrote. Every other member is as the agent wrote it.
func rewriteCard(raw []byte, url string, show func(skill string) bool) ([]byte, error) {
	card, err := readObject(raw, "url", "preferredTransport", "additionalInterfaces", "supportedInterfaces", "skills", "signatures")
	if err != nil {
		return nil, err
	}
	at := mcp.AppendString(nil, url)
	older, err := card.moveOlder(at)
	if err != nil {
		return nil, err
	}
	newer, err := card.moveNewer(at)
	if err != nil {
		return nil, err
	}
	if !older && !newer {
		return nil, errors.New("it offers no interface for JSON-RPC over HTTP, which alone is proxied")
	}
	if !older {
		card = card.without("url", "preferredTransport", "additionalInterfaces")
	}
	if !newer {
		card = card.without("supportedInterfaces")
	}
	if skills := card.raw("skills"); skills != nil && show != nil {
		shown, err := keepSkills(skills, show)
		if err != nil {
			return nil, err
		}
		card.set("skills", shown)
	}
	return card.without("signatures").encode(), nil
}

// moveOlder rewrites the interfaces of 0.3; false if there is none for JSON-RPC.
func (o object) moveOlder(at []byte) (found bool, err error) {
	preferred := o.raw("preferredTransport")
	found = o.raw("url") != nil && (preferred == nil || string(preferred) == "null" || o.text("preferredTransport") == jsonRPC)
	if more := o.raw("additionalInterfaces"); more != nil {
		kept, n, err := keepInterfaces(more, "transport", at)
		if err != nil {
			return false, err
		}
		o.set("additionalInterfaces", kept)
		found = found || o.raw("url") != nil && n > 0
	}
	o.set("url", at)
	o.set("preferredTransport", []byte(`"`+jsonRPC+`"`))
	return found, nil
}

// moveNewer rewrites the interfaces of 1.0; false if there is none for JSON-RPC.
func (o object) moveNewer(at []byte) (found bool, err error) {
	all := o.raw("supportedInterfaces")
	if all == nil {
		return false, nil
	}
	kept, n, err := keepInterfaces(all, "protocolBinding", at)
	if err != nil {
		return false, err
	}
	o.set("supportedInterfaces", kept)
	return n > 0, nil
}

// keepInterfaces keeps those for JSON-RPC, each once, and moves them to at.
func keepInterfaces(raw []byte, binding string, at []byte) (kept []byte, n int, err error) {
	var all [][]byte
	count := 0
	err = elements(raw, func(value []byte) error {
		if count++; count > maxInterfaces {
			return fmt.Errorf("it has more than %d interfaces", maxInterfaces)
		}
		o, err := readObject(value, "url", binding)
		if err != nil || o.raw("url") == nil || o.text(binding) != jsonRPC {
			return err
		}
		o.set("url", at)
		if moved := o.encode(); !slices.ContainsFunc(all, func(one []byte) bool { return bytes.Equal(one, moved) }) {
			all = append(all, moved)
		}
		return nil
	})
	return array(all), len(all), err
}

// keepSkills keeps the skills that show says yes to. One without an id cannot be asked about.
func keepSkills(raw []byte, show func(skill string) bool) ([]byte, error) {
	var all [][]byte
	err := elements(raw, func(value []byte) error {
		o, err := readObject(value, "id")
		if err != nil {
			return err
		}
		if id := o.text("id"); id != "" && show(id) {
			all = append(all, value)
		}
		return nil
	})
	return array(all), err
}

// elements is [mcp.Elements] of an array that may be null.
func elements(raw []byte, f func(value []byte) error) error {
	if string(raw) == "null" {
		return nil
	}
	return mcp.Elements(raw, mcp.Limits{Bytes: maxCard}, f)
}

func array(all [][]byte) []byte {
	return append(append([]byte{'['}, bytes.Join(all, []byte{','})...), ']')
}
