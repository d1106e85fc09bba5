package lease

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
)

// unknown are fields of a journal's entry that this version does not know. After a
// downgrade they are kept for the version that wrote them, which may rely on this:
//
//   - What it adds to a Record, a generation, a grant or a lease comes back unchanged
//     with that entry, as long as the entry lives. Everything below those four is
//     written anew, without what is not known.
//   - Entries that this version makes have no such field, and it changes the fields
//     that it knows without a look at the others. So a missing field must mean what
//     holds without it, and no field may be wrong once its neighbours have changed.
//   - A change that can't be made so needs a higher schema. A record of a higher one is
//     neither used nor touched, see [Store]: whoever can read it finds it as it was.
type unknown map[string]json.RawMessage

// decode reads an entry into known, a pointer to a struct, and returns what is left.
func decode(b []byte, known any) (unknown, error) {
	strict := json.NewDecoder(bytes.NewReader(b))
	strict.DisallowUnknownFields()
	if strict.Decode(known) == nil {
		return nil, nil // as good as always
	}
	var left unknown
	if err := json.Unmarshal(b, known); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &left); err != nil {
		return nil, err
	}
	of := reflect.TypeOf(known).Elem()
	for i := range of.NumField() {
		if name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ","); name != "" {
			delete(left, name)
		}
	}
	if len(left) == 0 {
		return nil, nil
	}
	return left, nil
}

// encode writes an entry, known by a pointer to a struct that is never empty, with
// what is not known of it.
func (u unknown) encode(known any) ([]byte, error) {
	b, err := json.Marshal(known)
	if err != nil || len(u) == 0 {
		return b, err
	}
	more, err := json.Marshal(map[string]json.RawMessage(u))
	if err != nil {
		return nil, err
	}
	b[len(b)-1] = ','
	return append(b, more[1:]...), nil
}

// The types without methods are those that encoding/json reads and writes itself.
type (
	plainRecord     Record
	plainGeneration generation
	plainGrant      grant
	plainLease      lease
)

// UnmarshalJSON implements json.Unmarshaler.
func (r *Record) UnmarshalJSON(b []byte) (err error) {
	r.unknown, err = decode(b, (*plainRecord)(r))
	return err
}

// MarshalJSON implements json.Marshaler.
func (r *Record) MarshalJSON() ([]byte, error) { return r.unknown.encode((*plainRecord)(r)) }

// UnmarshalJSON implements json.Unmarshaler.
func (g *generation) UnmarshalJSON(b []byte) (err error) {
	g.unknown, err = decode(b, (*plainGeneration)(g))
	return err
}

// MarshalJSON implements json.Marshaler.
func (g *generation) MarshalJSON() ([]byte, error) { return g.unknown.encode((*plainGeneration)(g)) }

// UnmarshalJSON implements json.Unmarshaler.
func (g *grant) UnmarshalJSON(b []byte) (err error) {
	g.unknown, err = decode(b, (*plainGrant)(g))
	return err
}

// MarshalJSON implements json.Marshaler.
func (g *grant) MarshalJSON() ([]byte, error) { return g.unknown.encode((*plainGrant)(g)) }

// UnmarshalJSON implements json.Unmarshaler.
func (l *lease) UnmarshalJSON(b []byte) (err error) {
	l.unknown, err = decode(b, (*plainLease)(l))
	return err
}

// MarshalJSON implements json.Marshaler.
func (l *lease) MarshalJSON() ([]byte, error) { return l.unknown.encode((*plainLease)(l)) }
