package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// Keys in a tenant's space. Content stands in blobs named by their hash, shared by the object and the log.
const (
	objectPrefix = "obj/"     // <kind>/<name> → objectRecord
	sourcePrefix = "source/"  // <kind>/<name> → Source; where an object was read is no content
	logPrefix    = "log/"     // revision in 16 hex digits → Entry
	blobPrefix   = "blob/"    // hash → Object without source, revision and time
	sealedPrefix = "sealed/"  // fingerprint → sealed value
	askedPrefix  = "request/" // request id → Outcome
	valuePrefix  = "value/"   // name → whatever a neighbour keeps beside the objects
)

// Object is one stored object: its key, its content's hash, and the object with what the store knows of it.
type Object struct {
	Kind, Name string
	Hash       string
	// Never changed once it is here: it is shared.
	Object *adminv1.Object

	content []byte // what Hash is of; nil once it is stored
}

// Key is the object's key within its tenant, e.g. `target/tools/search`.
func (o *Object) Key() string { return o.Kind + "/" + o.Name }

type objectRecord struct {
	Hash     string    `json:"hash"`
	Revision int64     `json:"revision"` // that last changed it
	Updated  time.Time `json:"updated"`
}

// Entry is a revision in a tenant's log.
type Entry struct {
	Revision  int64     `json:"revision"`
	Actor     string    `json:"actor"`
	Time      time.Time `json:"time"`
	Comment   string    `json:"comment,omitempty"`
	RequestID string    `json:"requestId,omitempty"`
	Ops       []Op      `json:"ops,omitempty"`
}

// Op is one object's change, by the hashes of its content. Empty: not there.
type Op struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Outcome is what a request with an id came to.
type Outcome struct {
	// Hash of the request: an id used for another one is an error.
	Request  string    `json:"request"`
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
}

// Tenant reads the records of one tenant. It cannot name another.
type Tenant struct {
	s    Store
	name string
}

// Of returns a handle of the tenant's space, which need not be there.
func Of(s Store, tenant string) Tenant { return Tenant{s: s, name: tenant} }

// NewObject makes what a revision stores of o at that time. Source, revision and time are no content: they are not hashed.
func NewObject(kind string, o *adminv1.Object, revision int64, updated time.Time) (*Object, error) {
	bare := &adminv1.Object{Name: o.GetName(), Spec: o.GetSpec(), Set: o.GetSet()}
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	if err != nil {
		return nil, fmt.Errorf("encode %s/%s: %w", kind, o.GetName(), err)
	}
	sum := sha256.Sum256(content)
	kept := &adminv1.Object{Name: o.GetName(), Spec: o.GetSpec(), Set: o.GetSet(), Source: o.GetSource(),
		Revision: revision, Updated: timestamppb.New(updated)}
	return &Object{Kind: kind, Name: o.GetName(), Hash: hex.EncodeToString(sum[:]), Object: kept, content: content}, nil
}

// Objects returns the tenant's head and its objects in the order of their keys.
func (t Tenant) Objects(ctx context.Context) (int64, []*Object, error) {
	head, err := t.s.Revision(ctx, t.name)
	if err != nil {
		return 0, nil, err
	}
	records, err := t.s.Range(ctx, t.name, Query{Prefix: objectPrefix})
	if err != nil {
		return 0, nil, err
	}
	sources, err := t.sources(ctx)
	if err != nil {
		return 0, nil, err
	}
	objects := make([]*Object, 0, len(records))
	for _, pair := range records {
		key := strings.TrimPrefix(pair.Key, objectPrefix)
		var r objectRecord
		if err := json.Unmarshal(pair.Value, &r); err != nil {
			return 0, nil, fmt.Errorf("tenant %q: record of %s: %w", t.name, key, err)
		}
		o, err := t.Content(ctx, r.Hash)
		if err != nil {
			return 0, nil, fmt.Errorf("tenant %q: content of %s: %w", t.name, key, err)
		}
		o.Revision, o.Updated, o.Source = r.Revision, timestamppb.New(r.Updated), sources[key]
		kind, name, _ := strings.Cut(key, "/")
		objects = append(objects, &Object{Kind: kind, Name: name, Hash: r.Hash, Object: o})
	}
	return head, objects, nil
}

func (t Tenant) sources(ctx context.Context) (map[string]*adminv1.Source, error) {
	pairs, err := t.s.Range(ctx, t.name, Query{Prefix: sourcePrefix})
	if err != nil {
		return nil, err
	}
	sources := make(map[string]*adminv1.Source, len(pairs))
	for _, pair := range pairs {
		source := &adminv1.Source{}
		if err := proto.Unmarshal(pair.Value, source); err != nil {
			return nil, fmt.Errorf("tenant %q: %s: %w", t.name, pair.Key, err)
		}
		sources[strings.TrimPrefix(pair.Key, sourcePrefix)] = source
	}
	return sources, nil
}

// Content returns the object with that hash, without source, revision and time.
func (t Tenant) Content(ctx context.Context, hash string) (*adminv1.Object, error) {
	content, err := t.s.Get(ctx, t.name, blobPrefix+hash)
	if err != nil {
		return nil, err
	}
	o := &adminv1.Object{}
	return o, proto.Unmarshal(content, o)
}

// Log returns at most limit entries, the newest first. If limit is 0: all that are kept.
func (t Tenant) Log(ctx context.Context, limit int) ([]Entry, error) {
	pairs, err := t.s.Range(ctx, t.name, Query{Prefix: logPrefix, Reverse: true, Limit: limit})
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, len(pairs))
	for i, pair := range pairs {
		if err := json.Unmarshal(pair.Value, &entries[i]); err != nil {
			return nil, fmt.Errorf("tenant %q: %s: %w", t.name, pair.Key, err)
		}
	}
	return entries, nil
}

// Entry returns one revision's, or [ErrNoRevision].
func (t Tenant) Entry(ctx context.Context, revision int64) (Entry, error) {
	value, err := t.s.Get(ctx, t.name, logKey(revision))
	if errors.Is(err, ErrNotFound) {
		return Entry{}, ErrNoRevision
	}
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	if err := json.Unmarshal(value, &e); err != nil {
		return Entry{}, fmt.Errorf("tenant %q: %s: %w", t.name, logKey(revision), err)
	}
	return e, nil
}

// Sides returns the objects that operations replaced and those that they made. Content that is older than what the log
// still reaches is missing.
func (t Tenant) Sides(ctx context.Context, ops []Op) (before, after []*adminv1.Object, err error) {
	for _, op := range ops {
		for _, side := range []struct {
			hash string
			into *[]*adminv1.Object
		}{{op.Old, &before}, {op.New, &after}} {
			if side.hash == "" {
				continue
			}
			o, err := t.Content(ctx, side.hash)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			*side.into = append(*side.into, o)
		}
	}
	return before, after, nil
}

// ErrNoRevision is returned for a revision that never was or that the log no longer reaches.
var ErrNoRevision = errors.New("no such revision in the log")

// At returns the objects as they were at revision: the present, with what came later undone.
func (t Tenant) At(ctx context.Context, revision int64) (Objects, error) {
	head, objects, err := t.Objects(ctx)
	if err != nil {
		return Objects{}, err
	}
	if revision < 1 || revision > head {
		return Objects{}, ErrNoRevision
	}
	entries, err := t.Log(ctx, int(head-revision)+1)
	if err != nil {
		return Objects{}, err
	}
	if len(entries) > 0 && entries[0].Revision > head { // a commit came between the two
		return t.At(ctx, revision)
	}
	if len(entries) == 0 || entries[len(entries)-1].Revision != revision {
		return Objects{}, ErrNoRevision
	}
	hashes := map[string]string{}
	for _, o := range objects {
		hashes[o.Key()] = o.Hash
	}
	for _, entry := range entries[:len(entries)-1] {
		for _, op := range slices.Backward(entry.Ops) {
			if op.Old == "" {
				delete(hashes, op.Kind+"/"+op.Name)
			} else {
				hashes[op.Kind+"/"+op.Name] = op.Old
			}
		}
	}
	then := make([]*Object, 0, len(hashes))
	for key, hash := range hashes {
		o, err := t.Content(ctx, hash)
		if err != nil {
			return Objects{}, fmt.Errorf("tenant %q: content of %s at revision %d: %w", t.name, key, revision, err)
		}
		kind, name, _ := strings.Cut(key, "/")
		then = append(then, &Object{Kind: kind, Name: name, Hash: hash, Object: o})
	}
	return ObjectsOf(then), nil
}

// Sealed returns all sealed values by fingerprint.
func (t Tenant) Sealed(ctx context.Context) (map[string][]byte, error) {
	return t.values(ctx, sealedPrefix)
}

// Values returns what was [Revision.Set] under names that begin with prefix, by name.
func (t Tenant) Values(ctx context.Context, prefix string) (map[string][]byte, error) {
	return t.values(ctx, valuePrefix+prefix)
}

func (t Tenant) values(ctx context.Context, prefix string) (map[string][]byte, error) {
	pairs, err := t.s.Range(ctx, t.name, Query{Prefix: prefix})
	if err != nil {
		return nil, err
	}
	values := make(map[string][]byte, len(pairs))
	for _, pair := range pairs {
		values[strings.TrimPrefix(pair.Key, prefix)] = pair.Value
	}
	return values, nil
}

// Outcome returns what the request with that id came to, or ErrNotFound.
func (t Tenant) Outcome(ctx context.Context, id string) (Outcome, error) {
	value, err := t.s.Get(ctx, t.name, askedPrefix+id)
	if err != nil {
		return Outcome{}, err
	}
	var o Outcome
	if err := json.Unmarshal(value, &o); err != nil {
		return Outcome{}, fmt.Errorf("tenant %q: outcome of request %q: %w", t.name, id, err)
	}
	return o, nil
}

// Revision is what one commit does to a tenant.
type Revision struct {
	Tenant string
	// Entry.Revision is the tenant's head plus one, or 0: the log and the head stay as they are.
	Entry Entry
	// The tenant's head before.
	If int64
	// Objects to store, from NewObject, and to remove. With Old, the objects before, they make Entry.Ops.
	Put    []*Object
	Remove []*Object
	Old    Objects
	// Where objects were read, by key.
	Sources map[string]*adminv1.Source
	// Sealed values by fingerprint.
	Sealed map[string][]byte
	// Values that are kept beside the objects, by name.
	Set map[string][]byte
	// Names of such values that go.
	Unset []string
	// Remembered under Entry.RequestID unless that is empty.
	Outcome *Outcome
}

// Edit lays the revision out in keys.
func (r Revision) Edit() (Edit, error) {
	e := Edit{Space: r.Tenant, If: r.If, Revision: r.Entry.Revision, Put: map[string][]byte{}}
	entry := r.Entry
	entry.Ops = nil
	for _, o := range r.Put {
		record, err := json.Marshal(objectRecord{Hash: o.Hash, Revision: o.Object.GetRevision(), Updated: o.Object.GetUpdated().AsTime()})
		if err != nil {
			return Edit{}, err
		}
		e.Put[blobPrefix+o.Hash], e.Put[objectPrefix+o.Key()] = o.content, record
		op := Op{Kind: o.Kind, Name: o.Name, New: o.Hash}
		if old := r.Old.Get(o.Key()); old != nil {
			op.Old = old.Hash
		}
		entry.Ops = append(entry.Ops, op)
	}
	for _, o := range r.Remove {
		e.Delete = append(e.Delete, objectPrefix+o.Key(), sourcePrefix+o.Key())
		entry.Ops = append(entry.Ops, Op{Kind: o.Kind, Name: o.Name, Old: o.Hash})
	}
	for key, source := range r.Sources {
		bytes, err := proto.Marshal(source)
		if err != nil {
			return Edit{}, fmt.Errorf("encode the source of %s: %w", key, err)
		}
		e.Put[sourcePrefix+key] = bytes
	}
	for fingerprint, sealed := range r.Sealed {
		e.Put[sealedPrefix+fingerprint] = sealed
	}
	for name, value := range r.Set {
		e.Put[valuePrefix+name] = value
	}
	for _, name := range r.Unset {
		e.Delete = append(e.Delete, valuePrefix+name)
	}
	return e, r.conclude(&e, entry)
}

func (r Revision) conclude(e *Edit, entry Entry) error {
	if entry.Revision != 0 {
		value, err := json.Marshal(entry)
		if err != nil {
			return err
		}
		e.Put[logKey(entry.Revision)] = value
	}
	if r.Outcome != nil && entry.RequestID != "" {
		value, err := json.Marshal(r.Outcome)
		if err != nil {
			return err
		}
		e.Put[askedPrefix+entry.RequestID] = value
	}
	return nil
}

func logKey(revision int64) string { return fmt.Sprintf("%s%016x", logPrefix, revision) }
