package xds

// An opening is how a type begins on a stream: with all of a tenant's resources, bucket by bucket, so that a newcomer who
// reads slowly holds one frame and not the whole; or with what differs from what the client says it has. What changes
// meanwhile is in the difference that follows.
type opening struct {
	claims  []claim // not looked at yet
	claimed bool    // there were some: the client holds more than it was sent
	listed  bool    // send has all that is left; else the buckets are sent
	send    []*resource
	removed []string

	layout, bucket int
	bodies         [][]byte // rest of the bucket
}

// next returns the next bodies; none when it is through.
func (o *opening) next(s *set, tenant string) [][]byte {
	if o.claims != nil {
		o.compare(s, tenant)
	}
	if len(o.removed)+len(o.send) > 0 {
		return o.list(s.id)
	}
	if o.bucket > 0 && o.layout != s.layout { // which buckets are sent is no longer known
		o.bucket, o.bodies = 0, nil
	}
	o.layout = s.layout
	for !o.listed && len(o.bodies) == 0 {
		if o.bucket == len(s.buckets) {
			o.listed = true
			break
		}
		o.bodies = s.page(o.bucket)
		o.bucket++
	}
	if o.listed {
		return nil
	}
	body := o.bodies[:1]
	o.bodies = o.bodies[1:]
	return body
}

// list encodes the next frame of the differences.
func (o *opening) list(set int) [][]byte {
	c := chunker{set: set}
	for len(o.removed) > 0 && c.fits(removedSize(o.removed[0])) {
		c.removed(o.removed[0])
		o.removed = o.removed[1:]
	}
	for len(o.send) > 0 && c.fits(resourceSize(&o.send[0].Resource)) {
		c.resource(&o.send[0].Resource)
		o.send = o.send[1:]
	}
	return c.bodies
}

// compare turns claims into what differs from them. Where most differs all is sent: those frames are shared.
func (o *opening) compare(s *set, tenant string) {
	claims := o.claims
	o.claims = nil
	known := 0
	for _, cl := range claims {
		r := s.get(string(cl.name))
		switch {
		case r != nil:
			known++
			if r.Version != string(cl.version) {
				o.send = append(o.send, r)
			}
		case string(cl.name) != commitName(tenant):
			o.removed = append(o.removed, string(cl.name))
		}
	}
	missing := s.count - known
	if len(o.send)+missing > s.count/2 {
		o.send = nil
		return
	}
	o.listed = true
	if missing == 0 {
		return // the common case needs no map of what the client has
	}
	have := make(map[string]bool, len(claims))
	for _, cl := range claims {
		have[string(cl.name)] = true
	}
	for r := range s.all {
		if !have[r.Name] {
			o.send = append(o.send, r)
		}
	}
}

// sent tells whether a resource may have been sent, of an opening by buckets that is on its way.
func (o *opening) sent(s *set, name string) bool {
	return o.layout != s.layout && o.bucket > 0 || s.index(name) < o.bucket
}
