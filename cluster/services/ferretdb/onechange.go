// FerretDB 1.24 reads the documents that an update matches, and writes them back in a transaction of its own: of two
// updates that ask for the same version of a document, both may succeed. MongoDB changes one document in one step.
// So changes pass one at a time here; reads and insertions, which PostgreSQL's unique index judges, pass freely.
//
// Frames are those of MongoDB's wire protocol: length, number, number answered, opcode (int32, little endian).
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	headBytes  = 16
	frameMax   = 48_000_000
	opMsg      = 2013
	moreToCome = 1 << 1
	nameAt     = headBytes + 4 + 1 + 4 + 1 // flags, kind of section, length of document, type of its first element
	nameMax    = 32
)

var oneChange sync.Mutex

func accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go pass(client)
	}
}

// pass takes a connection's requests to FerretDB one after the other, and the answers back.
func pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	for {
		request, err := frame(client)
		if err != nil || exchange(client, server, request) != nil {
			return
		}
	}
}

func exchange(client, server net.Conn, request []byte) error {
	if changes(request) {
		oneChange.Lock()
		defer oneChange.Unlock()
	}
	if _, err := server.Write(request); err != nil {
		return err
	}
	for more := !continues(request); more; {
		answer, err := frame(server)
		if err != nil {
			return err
		}
		if _, err := client.Write(answer); err != nil {
			return err
		}
		more = continues(answer)
	}
	return nil
}

func frame(from net.Conn) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(length[:])
	if size < headBytes || size > frameMax {
		return nil, fmt.Errorf("a frame of %d bytes", size)
	}
	whole := make([]byte, size)
	copy(whole, length[:])
	_, err := io.ReadFull(from, whole[len(length):])
	return whole, err
}

// continues says whether no answer, or another frame, follows.
func continues(frame []byte) bool {
	if len(frame) < headBytes+4 || binary.LittleEndian.Uint32(frame[12:]) != opMsg {
		return false
	}
	return binary.LittleEndian.Uint32(frame[headBytes:])&moreToCome != 0
}

// changes says whether a command alters or deletes documents that are there: its name is the first key.
func changes(frame []byte) bool {
	if len(frame) < nameAt || binary.LittleEndian.Uint32(frame[12:]) != opMsg {
		return false
	}
	name, _, _ := bytes.Cut(frame[nameAt:min(len(frame), nameAt+nameMax)], []byte{0})
	switch string(name) {
	case "update", "delete", "findAndModify":
		return true
	}
	return false
}
