package agent

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// skillNames are the members of metadata by which clients say which skill of an agent they mean. The protocol has no field
// for it; these are in use, in the metadata of the message and of the request.
var skillNames = []string{"skillId", "skill_id", "skill"}

// skillOf is the skill that a request names, "" if it names none. ambiguous says that what is read could be read in two
// ways; doubtful that it is no skill, or several, which matters to those who decide by it.
func skillOf(m *mcp.Message, lim mcp.Limits) (skill string, ambiguous *mcp.Error, doubtful error) {
	found := func(raw []byte) {
		text, ok := mcp.Unquote(raw)
		switch {
		case string(raw) == "null":
		case !ok:
			doubtful = fmt.Errorf("metadata: %s must be a string, the id of a skill", strings.Join(skillNames, ", "))
		case skill != "" && skill != string(text):
			doubtful = errors.New("metadata names two skills")
		default:
			skill = string(text)
		}
	}
	inMetadata := func(name, value []byte) error {
		for _, known := range skillNames {
			if string(name) == known {
				found(value)
			}
		}
		return nil
	}
	inMessage := func(name, value []byte) error {
		if string(name) == "metadata" {
			return members(value, lim, skillNames, inMetadata)
		}
		return nil
	}
	err := members(m.Params.Of(m.Body), lim, []string{"message", "metadata"}, func(name, value []byte) error {
		if string(name) == "message" {
			return members(value, lim, []string{"metadata"}, inMessage)
		}
		return inMessage(name, value)
	})
	if err != nil {
		if ambiguous, _ = errors.AsType[*mcp.Error](err); ambiguous == nil {
			ambiguous = &mcp.Error{Message: err.Error()}
		}
		return "", ambiguous, nil
	}
	if doubtful != nil {
		skill = ""
	}
	return skill, nil, doubtful
}

// members is [mcp.Members], to which what is no object has none.
func members(raw []byte, lim mcp.Limits, read []string, f func(name, value []byte) error) error {
	if len(raw) == 0 || raw[0] != '{' {
		return nil
	}
	return mcp.Members(raw, lim, read, f)
}
