package definitions

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrDamaged is the error for kept definitions whose checksum is wrong. They must not be served.
var ErrDamaged = errors.New("the kept definitions are damaged")

// LastGood keeps the last active definitions in a file, so that a gateway can start while their source is
// unreachable. Only the owner can read the file. It is replaced atomically, also if the machine stops.
type LastGood struct {
	// Dir is the data directory. Save creates it.
	Dir string
}

const (
	lastGoodFile = "definitions.last-good.yaml"
	// The first line of the file: what is below it, and where that came from. Its words are part of the format.
	lastGoodHeader = "# Written by gatepost: the definitions that were last proven. sha256=%s name=%q\n"
)

// Save replaces the kept definitions by d.
func (l LastGood) Save(d *Definitions) error {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return fmt.Errorf("keeping definitions: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, lastGoodHeader, lastGoodSum(d.Name, d.Text), d.Name)
	b.Write(d.Text)
	if err := replaceFile(l.path(), b.Bytes()); err != nil {
		return fmt.Errorf("keeping definitions: %w", err)
	}
	return nil
}

// Load returns the kept definitions. An error is fs.ErrNotExist if nothing was kept yet, [ErrDamaged] if the file is
// not what Save wrote, and [Problems] if the definitions break a newer rule.
func (l LastGood) Load() (*Definitions, error) {
	kept, err := os.ReadFile(l.path())
	if err != nil {
		return nil, fmt.Errorf("reading kept definitions: %w", err)
	}
	header, text, _ := bytes.Cut(kept, []byte("\n"))
	var sum, name string
	if _, err := fmt.Sscanf(string(header)+"\n", lastGoodHeader, &sum, &name); err != nil || sum != lastGoodSum(name, text) {
		return nil, fmt.Errorf("reading %s: %w; remove it", l.path(), ErrDamaged)
	}
	d, err := Parse(name, text)
	if err != nil {
		return nil, fmt.Errorf("reading kept definitions: %w", err)
	}
	return d, nil
}

func (l LastGood) path() string { return filepath.Join(l.Dir, lastGoodFile) }

func lastGoodSum(name string, text []byte) string {
	return hash(append([]byte(name+"\x00"), text...))
}

// replaceFile writes a file next to path and renames it to path. Both are on the disk when it returns.
func replaceFile(path string, data []byte) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(file.Name())))
		}
	}()
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err = os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// syncDir makes a rename in the directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
