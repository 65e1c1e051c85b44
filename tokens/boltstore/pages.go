package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"os"
	"slices"
)

// pages reads a bbolt file (format version 2) page by page. bbolt maps the file and trusts every
// length in it, so a damaged page causes a panic or a fault. Here it is an error, and other pages
// are readable.
type pages struct {
	file     io.ReaderAt
	size     uint64          // bytes per page
	count    uint64          // pages in the file
	root     uint64          // the page of the bucket of buckets
	freelist uint64          // the page of the list of free pages
	seen     map[uint64]bool // the pages that are part of a tree
	free     map[uint64]bool // the pages that are not
	oneMeta  bool            // only one copy of the meta data is valid, maybe the older
	damaged  []error         // one error per unreadable page
	leaf     []byte          // the buffer of the last leaf
}

// The layout of a page and of the meta data on the first two pages, in bytes.
const (
	pageHeader   = 16 // id, flags (2 bytes), count (2 bytes), overflow (4 bytes)
	pageElement  = 16
	bucketHeader = 16 // root page, sequence; root 0: an inline page follows
	metaSum      = 56 // offset of the checksum of the meta data
	metaSize     = 64

	branchPage   = 1
	leafPage     = 2
	freelistPage = 16

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	noFreelist  = math.MaxUint64
)

var errNoMeta = errors.New("neither of the first two pages has valid meta data")

// newPages finds the newest meta data of a file. Its page size is that of the first valid meta
// data.
func newPages(file *os.File) (*pages, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	first := readMeta(file, 0)
	for size := int64(1024); first == nil && size <= 64<<10; size *= 2 {
		first = readMeta(file, size)
	}
	if first == nil {
		return nil, errNoMeta
	}
	size := int64(number32(first[8:]))
	newest, valid := first, 0
	for _, at := range []int64{0, size} {
		meta := readMeta(file, at)
		if meta == nil {
			continue
		}
		valid++
		if number64(meta[48:]) > number64(newest[48:]) {
			newest = meta
		}
	}
	return &pages{
		file: file, size: uint64(size), count: uint64(info.Size() / max(size, 1)), seen: map[uint64]bool{}, free: map[uint64]bool{},
		root: number64(newest[16:]), freelist: number64(newest[32:]),
		oneMeta: valid < 2,
	}, nil
}

// readMeta returns the meta data of the page at an offset, or nil if they are invalid.
func readMeta(file io.ReaderAt, at int64) []byte {
	meta := make([]byte, metaSize)
	if _, err := file.ReadAt(meta, at+pageHeader); err != nil {
		return nil
	}
	sum := fnv.New64a()
	_, _ = sum.Write(meta[:metaSum])
	if number32(meta) != metaMagic || number32(meta[4:]) != metaVersion || number64(meta[metaSum:]) != sum.Sum64() {
		return nil
	}
	return meta
}

func number64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
func number32(b []byte) uint64 { return uint64(binary.NativeEndian.Uint32(b)) }
func number16(b []byte) uint64 { return uint64(binary.NativeEndian.Uint16(b)) }

// walkAll calls visit for every readable entry of every bucket. visit must not keep the slices. If
// the list of free pages is unreadable, walkAll visits nothing and returns an error.
func (p *pages) walkAll(visit func(bucket string, key, value []byte)) error {
	if err := p.readFreelist(); err != nil {
		return err
	}
	headers := map[string][]byte{} // bucket → its header, with its inline page
	p.walk(p.root, func(name, header []byte, isBucket bool) {
		if isBucket && len(header) >= bucketHeader {
			headers[string(name)] = bytes.Clone(header)
		}
	})
	for name, header := range headers {
		entry := func(key, value []byte, _ bool) { visit(name, key, value) }
		if root := number64(header); root != 0 {
			p.walk(root, entry)
		} else {
			p.elements(header[bucketHeader:], 0, entry)
		}
	}
	return nil
}

// walk visits the entries of a tree in order.
func (p *pages) walk(id uint64, visit func(key, value []byte, isBucket bool)) {
	page, err := p.read(id)
	if err == nil && (p.seen[id] || p.free[id]) {
		err = fmt.Errorf("page %d is used twice or free", id)
	}
	if err != nil {
		p.damaged = append(p.damaged, err)
		return
	}
	p.seen[id] = true
	p.elements(page, id, visit)
}

// read reads a page with its overflow pages. A leaf is valid until the next leaf is read.
func (p *pages) read(id uint64) ([]byte, error) {
	if id < 2 || id >= p.count {
		return nil, fmt.Errorf("page %d is not in the file", id)
	}
	header := make([]byte, pageHeader)
	if _, err := p.file.ReadAt(header, int64(id*p.size)); err != nil {
		return nil, fmt.Errorf("reading page %d: %w", id, err)
	}
	overflow := number32(header[12:])
	if got := number64(header); got != id || id+overflow >= p.count {
		return nil, fmt.Errorf("page %d has the header of page %d and %d more", id, got, overflow)
	}
	var page []byte
	if length := int((overflow + 1) * p.size); number16(header[8:]) == leafPage {
		p.leaf = slices.Grow(p.leaf[:0], length)[:length]
		page = p.leaf
	} else {
		page = make([]byte, length)
	}
	if _, err := p.file.ReadAt(page, int64(id*p.size)); err != nil {
		return nil, fmt.Errorf("reading page %d: %w", id, err)
	}
	return page, nil
}

// elements visits the entries of a leaf, or of the pages below a branch. id is used in errors.
func (p *pages) elements(page []byte, id uint64, visit func(key, value []byte, isBucket bool)) {
	damaged := func(what string) { p.damaged = append(p.damaged, fmt.Errorf("page %d: %s", id, what)) }
	if len(page) < pageHeader {
		damaged("it is too short")
		return
	}
	flags, count := number16(page[8:]), number16(page[10:])
	if flags != branchPage && flags != leafPage {
		damaged("it is neither a branch nor a leaf")
		return
	}
	var before []byte
	for i := range count {
		at := pageHeader + i*pageElement
		if at+pageElement > uint64(len(page)) {
			damaged("its entries are beyond its end")
			return
		}
		element := page[at:]
		if flags == branchPage {
			p.walk(number64(element[8:]), visit)
			continue
		}
		start, length, rest := at+number32(element[4:]), number32(element[8:]), number32(element[12:])
		if start+length+rest > uint64(len(page)) {
			damaged("an entry is beyond its end")
			return
		}
		key, value := page[start:start+length], page[start+length:start+length+rest]
		if i > 0 && bytes.Compare(before, key) >= 0 {
			damaged("its entries are not in order")
			return
		}
		before = key
		visit(key, value, number32(element)&1 != 0)
	}
}

// readFreelist reads the list of free pages. They contain deleted records, including revoked
// tokens, so a tree that leads to one is damaged.
func (p *pages) readFreelist() error {
	if p.freelist == noFreelist {
		return nil
	}
	page, err := p.read(p.freelist)
	if err != nil {
		return fmt.Errorf("the list of free pages: %w", err)
	}
	ids, count := page[pageHeader:], number16(page[10:])
	if count == math.MaxUint16 { // a long list begins with its length
		ids, count = ids[8:], number64(ids)
	}
	if number16(page[8:]) != freelistPage || count > uint64(len(ids))/8 {
		return fmt.Errorf("page %d is not a list of free pages", p.freelist)
	}
	for i := range count {
		p.free[number64(ids[8*i:])] = true
	}
	return nil
}
