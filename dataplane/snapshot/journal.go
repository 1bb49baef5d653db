package snapshot

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A journal holds what became active since the configuration beside it was written: writing that whole takes as long as
// it is large, and a proxy says that it serves a revision only when its own death cannot take that back. Each record is
// sealed with its place, and handed to the kernel before the revision is confirmed; it is not synced, for what outlives
// the process is enough until the whole is written, which is.
const (
	journalPrefix = "config.journal."
	journalFormat = "sluice-journal-1\n" // at the file's head
	maxRecord     = 1 << 30
)

// record is one of: a revision, a tenant that left, and the journal that goes on after this one.
type record struct {
	Seen   time.Time
	Update Update
	Drop   string
	Next   string
}

type journal struct {
	id    string
	file  *os.File // nil: nothing more can be written to it
	count uint64
	// found says that what is on disk leads to it: the journal before, or the whole.
	found bool
}

// sealedWith ties a record to its place: none can be left out, moved or taken from another journal.
func (j *journal) sealedWith() []byte {
	return binary.BigEndian.AppendUint64([]byte(journalFormat+j.id), j.count)
}

func (d *Disk) journalPath(id string) string { return filepath.Join(d.dir, journalPrefix+id) }

// append writes a record to the open journal. It reports false if a restart would not find it there: then the whole must
// be written.
func (d *Disk) append(r record) bool {
	j := &d.journal
	if j.file == nil {
		return false
	}
	var plain bytes.Buffer
	err := gob.NewEncoder(&plain).Encode(r)
	if err == nil {
		sealed := d.aead.Seal(nil, nil, plain.Bytes(), j.sealedWith())
		_, err = j.file.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(sealed))), sealed...))
	}
	if err != nil { // half a record may stand there, and nothing is read behind it
		j.file.Close()
		j.file = nil
		return false
	}
	j.count++
	return j.found
}

// rotate begins a new journal, to which the one before points, and returns its id. What is active now, and is about to
// be written whole, comes before all that will be in it.
func (d *Disk) rotate() (string, error) {
	next := journal{id: rand.Text()}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return "", err
	}
	file, err := os.OpenFile(d.journalPath(next.id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if _, err := file.WriteString(journalFormat); err != nil {
		return "", errors.Join(err, file.Close(), os.Remove(file.Name()))
	}
	next.file = file
	next.found = d.append(record{Next: next.id})
	if d.journal.file != nil {
		d.journal.file.Close()
	}
	d.journal = next
	d.since = append(d.since, next.id)
	return next.id, nil
}

// forgetJournals is called when the whole was written with the journal id: it removes those that neither generation needs.
func (d *Disk) forgetJournals(id string, pushed bool) {
	at := slices.Index(d.since, id)
	if pushed {
		d.before = nil
	}
	d.before = append(d.before, d.since[:at]...)
	d.since = slices.Clone(d.since[at:])
	files, _ := filepath.Glob(filepath.Join(d.dir, journalPrefix+"*"))
	for _, file := range files {
		if known := filepath.Base(file)[len(journalPrefix):]; !slices.Contains(d.before, known) && !slices.Contains(d.since, known) {
			os.Remove(file) //nolint:errcheck // the next time, then
		}
	}
}

// replay reads the journal id and those it leads to, as far as they are whole.
func (d *Disk) replay(id string) (records []record, err error) {
	for id != "" {
		d.since = append(d.since, id)
		data, err := os.ReadFile(d.journalPath(id))
		if errors.Is(err, fs.ErrNotExist) {
			return records, nil
		}
		if err != nil {
			return records, err
		}
		data, ok := bytes.CutPrefix(data, []byte(journalFormat))
		if !ok {
			return records, nil // cut as it was begun
		}
		j := journal{id: id}
		id = ""
		for len(data) >= 4 && id == "" {
			size := binary.BigEndian.Uint32(data)
			if size > maxRecord || int(size) > len(data)-4 {
				return records, nil // it died with this one, which it did not confirm
			}
			plain, err := d.aead.Open(nil, nil, data[4:4+size], j.sealedWith())
			if err != nil {
				return records, fmt.Errorf("%s: record %d was changed, or sealed with another key", d.journalPath(j.id), j.count)
			}
			var r record
			if err := gob.NewDecoder(bytes.NewReader(plain)).Decode(&r); err != nil {
				return records, fmt.Errorf("%s: record %d: %w", d.journalPath(j.id), j.count, err)
			}
			j.count++
			data = data[4+size:]
			if r.Next != "" {
				id = r.Next
			} else {
				records = append(records, r)
			}
		}
	}
	return records, nil
}

// journalLocked has what just became active survive this process. It reports false if the whole must be written for that.
func (s *Store) journalLocked(r record) bool {
	if s.cfg.Disk == nil {
		return true
	}
	s.save() // the whole follows
	r.Seen = time.Now()
	return s.cfg.Disk.append(r) || s.unwritable
}

// resume makes active what a journal holds.
func (s *Store) resume(r record, expired bool) error {
	if r.Drop != "" {
		delete(s.tenants, r.Drop)
		s.swap(r.Drop)
		return nil
	}
	t := s.tenants[r.Update.Tenant]
	if t == nil {
		t = newTenant(r.Update.Tenant)
	}
	next := t.stage(r.Update)
	if len(r.Update.Digest) > 0 && string(r.Update.Digest) != string(next.digest[:]) {
		return fmt.Errorf("tenant %s, revision %d in the journal: %w", r.Update.Tenant, r.Update.Revision, ErrDrift)
	}
	t.take(next, r.Update.Revision)
	t.stale, t.expired = true, expired
	s.tenants[t.name] = t
	s.build(t)
	s.swap(t.name)
	return nil
}
