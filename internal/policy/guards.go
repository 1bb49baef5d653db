package policy

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluicegate/sluice/internal/guard"
)

// A GuardError refuses a message for what it says.
type GuardError struct {
	Place string // of the guard, e.g. `policies.ai.promptGuard.request[0]`
	Rule  string // of the rule in it that decided; the guard's own place where it has none
	// Message is for the caller: the operator's, or one that names the guard's place. It tells nothing of what was found.
	Message string
	// Undecided: the guard could not decide, and fails closed.
	Undecided bool
	// Err is why, for the log: what a judge gave as its reason, or why there is no decision. Nil for a rule.
	Err error
}

func (e *GuardError) Error() string { return e.Message }

func (e *GuardError) Unwrap() error { return e.Err }

func (j *judged) refuse(rule string, err error) *GuardError {
	e := &GuardError{Place: j.place, Rule: rule, Message: j.message, Err: err}
	if e.Message == "" {
		e.Message = "refused by " + j.place
	}
	return e
}

// Guards reports whether any guard looks at what goes in a direction. Without one, messages need not be read.
func (t *Target) Guards(d Direction) bool {
	return t != nil && t.ai != nil && len(t.ai.stages[d]) > 0
}

// GuardsAsk reports whether a guard of a direction asks somebody, who may judge the same message differently for another
// caller, or later.
func (t *Target) GuardsAsk(d Direction) bool {
	if !t.Guards(d) {
		return false
	}
	for i := range t.ai.stages[d] {
		if t.ai.stages[d][i].asks != nil {
			return true
		}
	}
	return false
}

// Filters are the guards of a direction that need nobody to ask, for what is split over several messages.
func (t *Target) Filters(d Direction) []*guard.Filter {
	if t == nil || t.ai == nil {
		return nil
	}
	return t.ai.filter[d]
}

// Found is the refusal for what one of [Target.Filters] found.
func (t *Target) Found(f *guard.Finding) *GuardError { return t.ai.rules[f.Rule].refuse(f.Rule, nil) }

// Guard runs the guards of a direction over one whole message, whose text stands where shape says. It returns the message to
// send on, which is message itself if nothing was changed, or a *GuardError. note, if not nil, is why a guard that fails open
// did not decide.
func (t *Target) Guard(ctx context.Context, c *Call, d Direction, message []byte, shape *guard.Shape) (out []byte, note, err error) {
	if !t.Guards(d) {
		return message, nil, nil
	}
	for i := range t.ai.stages[d] {
		s := &t.ai.stages[d][i]
		if s.asks == nil {
			next, found, err := guard.Apply(s.filters, message, shape)
			if err != nil {
				return nil, note, unseen(err)
			}
			if found != nil {
				return nil, note, t.Found(found)
			}
			message = next
			continue
		}
		next, undecided, err := s.ask(ctx, c, d, message, shape)
		if err != nil {
			return nil, note, err
		}
		message, note = next, errors.Join(note, undecided)
	}
	return message, note, nil
}

// Trouble is what keeps guards from deciding, each as it was the last time that it was asked: operators have to know, whether
// it refuses then or lets pass. Nil if there is none.
func (t *Target) Trouble() error {
	if t == nil || t.ai == nil {
		return nil
	}
	var all []error
	for d := range t.ai.stages {
		for i := range t.ai.stages[d] {
			if s := &t.ai.stages[d][i]; s.asks != nil {
				if err := s.trouble.Load(); err != nil {
					all = append(all, *err)
				}
			}
		}
	}
	return errors.Join(all...)
}

// unseen refuses what no guard can look at.
func unseen(err error) error {
	return &GuardError{Message: "the message cannot be read", Undecided: true, Err: err}
}

// ask lets a judge see the texts of a message.
func (s *stage) ask(ctx context.Context, c *Call, d Direction, message []byte, shape *guard.Shape) (out []byte, undecided, err error) {
	texts, err := guard.Texts(message, shape)
	if err != nil {
		return nil, nil, unseen(err)
	}
	said := texts[:0:0]
	for _, x := range texts {
		if x.Value != "" {
			said = append(said, x)
		}
	}
	if len(said) == 0 {
		return message, nil, nil
	}
	instead, err := s.asks.judge(ctx, c, d, said)
	if r, ok := errors.AsType[*refusal](err); ok {
		s.trouble.Store(nil)
		return nil, nil, s.refuse(s.place, r)
	}
	if err == nil {
		s.trouble.Store(nil)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", s.place, err)
		if ctx.Err() == nil { // else the caller has left, which says nothing of the service
			why := err
			s.trouble.Store(&why)
		}
		if ctx.Err() == nil && s.asks.failsOpen() {
			return message, err, nil
		}
		e := s.refuse(s.place, err)
		e.Message, e.Undecided = s.place+" could not decide, and refuses then", true
		return nil, nil, e
	}
	if instead == nil {
		return message, nil, nil
	}
	return guard.Replace(message, said, instead), nil, nil
}
