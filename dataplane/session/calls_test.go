package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		codec, err := New([]Key{{ID: [4]byte{1}, Secret: [32]byte{2}}})
		if err != nil {
			t.Fatal(err)
		}
		scope := Scope{Tenant: "acme", Backend: "acme/backend/tools", Principal: "jwt:ada"}
		want := Call{
			Owner: "proxy-1", ID: CallID{1, 2, 3}, Round: 300, Target: "acme/target/tools/time", Digest: [32]byte{9},
			Expires: time.Now().Add(time.Minute).Truncate(time.Second), State: "round=1", HasState: true, Answered: true,
		}
		state := codec.SealCall(scope, want)
		got, err := codec.OpenCall(scope, state)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("OpenCall: %v (-want +got):\n%s", err, diff)
		}
		other := scope
		other.Principal = "jwt:eve"
		cursor := codec.SealCursor(scope, Cursor{})
		for name, err := range map[string]error{
			"another principal": second(codec.OpenCall(other, state)),
			"edited":            second(codec.OpenCall(scope, state+"-TAMPERED")),
			"cut":               second(codec.OpenCall(scope, state[:len(state)-4])),
			"empty":             second(codec.OpenCall(scope, "")),
			"another kind":      second(codec.OpenCall(scope, cursor)),
		} {
			if err == nil {
				t.Errorf("%s: opens", name)
			}
		}
		time.Sleep(time.Minute)
		if _, err := codec.OpenCall(scope, state); err == nil {
			t.Error("expired: opens")
		}
	})
}

func second(_ Call, err error) error { return err }
