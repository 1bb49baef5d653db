package agent

import (
	"context"
	"crypto/sha256"
	"slices"

	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
)

// maxVoices bounds the artifacts that are told apart in one stream.
const maxVoices = 16

// pieces look for what several texts hold together: those of one message's parts, and of a stream's events. Readers see them
// all in the order in which they come, and each artifact by itself, so both are looked at.
type pieces struct {
	filters []*guard.Filter // none: nothing is looked for
	n       uint64          // messages so far
	all     guard.Trail
	voices  map[[sha256.Size]byte]*guard.Trail // by artifact, whose id can be of any length
}

func (c *call) pieces(d policy.Direction) *pieces {
	return &pieces{filters: c.agent.Policy.Filters(d), all: guard.Trail{Pieces: true}}
}

// add returns what the next message completes, in it and in those before it. An error is [guard.ErrJSON].
func (p *pieces) add(message []byte) (splits []guard.Split, err error) {
	n := p.n
	p.n++
	trails := []*guard.Trail{&p.all}
	if artifact := guard.Artifact(message); artifact != nil {
		trails = append(trails, p.voice(artifact))
	}
	for _, trail := range trails {
		found, err := trail.Add(p.filters, n, message, guard.AgentSaid)
		if err != nil {
			return nil, err
		}
		for _, s := range found {
			same := func(o guard.Split) bool {
				return o.Message == s.Message && o.Extra.At == s.Extra.At && o.Extra.From == s.Extra.From && o.Extra.To == s.Extra.To
			}
			if !slices.ContainsFunc(splits, same) {
				splits = append(splits, s)
			}
		}
	}
	return splits, nil
}

func (p *pieces) voice(artifact []byte) *guard.Trail {
	voice := sha256.Sum256(artifact)
	if t := p.voices[voice]; t != nil {
		return t
	}
	if p.voices == nil || len(p.voices) >= maxVoices {
		p.voices = map[[sha256.Size]byte]*guard.Trail{}
	}
	t := &guard.Trail{Pieces: true}
	p.voices[voice] = t
	return t
}

// whole is a message by itself, whose parts a reader joins.
func (c *call) whole(ctx context.Context, d policy.Direction, original, guarded []byte) ([]byte, error) {
	p := c.pieces(d)
	if len(p.filters) == 0 {
		return guarded, nil
	}
	splits, err := p.add(original)
	if err != nil {
		return nil, c.unreadable(d, err)
	}
	var extra []guard.Extra
	for _, s := range splits {
		if s.Finding != nil {
			return nil, c.Found(c.agent, d, s.Finding)
		}
		extra = append(extra, s.Extra)
	}
	if extra == nil {
		return guarded, nil
	}
	return c.masked(ctx, d, original, extra)
}

// masked is a message less what stands in it of what several texts hold together.
func (c *call) masked(ctx context.Context, d policy.Direction, original []byte, extra []guard.Extra) ([]byte, error) {
	out, _, err := guard.Apply(nil, original, guard.Agent, extra...)
	if err != nil {
		return nil, c.unreadable(d, err)
	}
	return c.Guard(ctx, c.agent, d, out, guard.Agent)
}

// unreadable cannot happen to what was scanned, and would be a fault of one of the two readers.
func (c *call) unreadable(d policy.Direction, err error) error {
	return c.invalid("the %s cannot be read: %v", d, err)
}

// said is what the client says to the agent, as guards let it.
func (c *call) said(ctx context.Context) ([]byte, error) {
	guarded, err := c.Guard(ctx, c.agent, policy.ToTarget, c.Message.Body, guard.Agent)
	if err != nil {
		return nil, err
	}
	return c.whole(ctx, policy.ToTarget, c.Message.Body, guarded)
}
