package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

func object(t *testing.T, o *adminv1.Object, revision int64) *Object {
	t.Helper()
	kind := "listener"
	if o.GetSecret() != nil {
		kind = "secret"
	}
	made, err := NewObject(kind, o, revision, time.Unix(revision, 0))
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func listener(name string, port uint32) *adminv1.Object {
	return &adminv1.Object{Name: name, Spec: &adminv1.Object_Listener{Listener: &adminv1.Listener{Port: port}}}
}

func secret(name, fingerprint string) *adminv1.Object {
	return &adminv1.Object{Name: name, Spec: &adminv1.Object_Secret{Secret: &adminv1.Secret{
		Value: &policyv1.Credential{Source: &policyv1.Credential_Sealed{Sealed: fingerprint}}}}}
}

// history writes random revisions of one tenant and remembers what each held.
func history(t *testing.T, b *Bolt, revisions int) map[int64]map[string]uint32 {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	held := map[int64]map[string]uint32{}
	now := map[string]uint32{}
	for i := range int64(revisions) {
		_, objects, err := Of(b, "t").Objects(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		old := map[string]*Object{}
		for _, o := range objects {
			old[o.Key()] = o
		}
		rev := Revision{Tenant: "t", If: i, Old: ObjectsOf(objects),
			Entry: Entry{Revision: i + 1, Actor: "tester", Time: time.Unix(i, 0).UTC()}}
		touched := map[string]bool{}
		for range 1 + r.IntN(3) {
			name := fmt.Sprint("l", r.IntN(6))
			if touched[name] {
				continue
			}
			touched[name] = true
			if o := old["listener/"+name]; o != nil && r.IntN(3) == 0 {
				rev.Remove = append(rev.Remove, o)
				delete(now, name)
				continue
			}
			port := uint32(r.IntN(65535))
			rev.Put = append(rev.Put, object(t, listener(name, port), i+1))
			now[name] = port
		}
		edit, err := rev.Edit()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(t.Context(), Txn{edit}); err != nil {
			t.Fatal(err)
		}
		held[i+1] = map[string]uint32{}
		for k, v := range now {
			held[i+1][k] = v
		}
	}
	return held
}

func ports(objects Objects) map[string]uint32 {
	got := map[string]uint32{}
	for o := range objects.All() {
		got[o.Name] = o.Object.GetListener().GetPort()
	}
	return got
}

func TestAtUndoesTheLog(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	held := history(t, b, 40)
	for revision, want := range held {
		then, err := Of(b, "t").At(t.Context(), revision)
		if err != nil {
			t.Fatalf("At(%d): %v", revision, err)
		}
		if diff := cmp.Diff(want, ports(then)); diff != "" {
			t.Errorf("At(%d) (-want +got):\n%s", revision, diff)
		}
	}
	for _, revision := range []int64{0, -1, 41} {
		if _, err := Of(b, "t").At(t.Context(), revision); !errors.Is(err, ErrNoRevision) {
			t.Errorf("At(%d): %v, want ErrNoRevision", revision, err)
		}
	}
	if _, err := Of(b, "other").At(t.Context(), 1); !errors.Is(err, ErrNoRevision) {
		t.Errorf("At of a tenant that is not there: %v", err)
	}
}

// interrupted is a real store in which something happens before the log is read.
type interrupted struct {
	Store
	before func()
}

func (s *interrupted) Range(ctx context.Context, space string, q Query) ([]Pair, error) {
	if before := s.before; q.Prefix == logPrefix && before != nil {
		s.before = nil
		before()
	}
	return s.Store.Range(ctx, space, q)
}

// What is committed while an old revision is read does not make it one that never was, nor another.
func TestAtDuringACommit(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	held := history(t, b, 10)
	s := &interrupted{Store: b}
	for revision, want := range held {
		s.before = func() {
			head, objects, err := Of(b, "t").Objects(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r := Revision{Tenant: "t", If: head, Old: ObjectsOf(objects), Entry: Entry{Revision: head + 1}, Remove: objects[:1], Put: []*Object{object(t, listener("other", uint32(head)), head+1)}}
			edit, err := r.Edit()
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Commit(t.Context(), Txn{edit}); err != nil {
				t.Fatal(err)
			}
		}
		then, err := Of(s, "t").At(t.Context(), revision)
		if err != nil {
			t.Fatalf("At(%d): %v", revision, err)
		}
		if diff := cmp.Diff(want, ports(then)); diff != "" {
			t.Errorf("At(%d) (-want +got):\n%s", revision, diff)
		}
	}
}

func TestTrimKeepsWhatTheLogReaches(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "store.db"))
	held := history(t, b, 40)
	tenant := Of(b, "t")
	put := Revision{Tenant: "t", If: 40, Entry: Entry{Revision: 41, Time: time.Unix(41, 0)}, Put: []*Object{object(t, secret("s", "fingerprint-live"), 41)},
		Sealed: map[string][]byte{"fingerprint-live": {1}, "fingerprint-dead": {2}}}
	edit, err := put.Edit()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(t.Context(), Txn{edit}); err != nil {
		t.Fatal(err)
	}
	before, _ := b.Range(t.Context(), "t", Query{Prefix: blobPrefix})
	trim, ok, err := tenant.Trim(t.Context(), 11, time.Unix(50, 0))
	if err != nil || !ok {
		t.Fatalf("Trim: %v, %v", ok, err)
	}
	if err := b.Commit(t.Context(), Txn{trim}); err != nil {
		t.Fatal(err)
	}
	for revision := int64(31); revision <= 40; revision++ {
		then, err := tenant.At(t.Context(), revision)
		if err != nil {
			t.Fatalf("At(%d) after Trim: %v", revision, err)
		}
		if diff := cmp.Diff(held[revision], ports(then)); diff != "" {
			t.Errorf("At(%d) after Trim (-want +got):\n%s", revision, diff)
		}
	}
	if _, err := tenant.At(t.Context(), 30); !errors.Is(err, ErrNoRevision) {
		t.Errorf("At(30) after Trim: %v, want ErrNoRevision", err)
	}
	after, _ := b.Range(t.Context(), "t", Query{Prefix: blobPrefix})
	if len(after) >= len(before) {
		t.Errorf("Trim left %d of %d blobs", len(after), len(before))
	}
	sealed, err := tenant.Sealed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]byte{"fingerprint-live": {1}}, sealed); diff != "" {
		t.Errorf("sealed values (-want +got):\n%s", diff)
	}
}

func TestPlaceIsNoContent(t *testing.T) {
	o := listener("l", 1)
	bare := object(t, o, 1).Hash
	o.Source, o.Revision = &adminv1.Source{File: "a.yaml"}, 9
	if object(t, o, 2).Hash != bare {
		t.Error("source and revision change the hash")
	}
	o.Set = "default"
	if object(t, o, 1).Hash == bare {
		t.Error("the set does not change the hash")
	}
}

func TestObjectsComeBackWithTheirPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	b := open(t, path)
	source := &adminv1.Source{File: "a.yaml", Position: &adminv1.Position{Line: 3, Column: 1}}
	want := object(t, listener("l", 80), 1)
	rev := Revision{Tenant: "t", Entry: Entry{Revision: 1, Time: time.Unix(1, 0)}, Put: []*Object{want},
		Sources: map[string]*adminv1.Source{"listener/l": source}, Set: map[string][]byte{"x/y": []byte("z")}}
	edit, err := rev.Edit()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(t.Context(), Txn{edit}); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b = open(t, path)
	head, objects, err := Of(b, "t").Objects(t.Context())
	if err != nil || head != 1 || len(objects) != 1 {
		t.Fatalf("Objects = %d, %v, %v", head, objects, err)
	}
	want.Object.Source = source
	if diff := cmp.Diff(want, objects[0], protocmp.Transform(), cmpopts.IgnoreUnexported(Object{})); diff != "" {
		t.Errorf("object (-want +got):\n%s", diff)
	}
	if values, err := Of(b, "t").Values(t.Context(), "x/"); err != nil || string(values["y"]) != "z" {
		t.Errorf("Values = %q, %v", values, err)
	}
}
