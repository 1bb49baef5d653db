package snapshot

// Disk keeps the last good configuration, sealed.
type Disk struct{}

func (s *Store) write() {}
