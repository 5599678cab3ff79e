// From GRUB (Multiboot 1, 32 bits, interrupts off) to 64 bits, and the ways in: system calls and faults. Everything
// runs in ring 0 with memory mapped as it lies, so that a system call needs no return to another ring.
.section .text.boot, "ax"
.code32
.align 8
header:
  .long 0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003)
  .long header, header, image_end, memory_end, start
.globl start
start:
  mov %ebx, %esi                      // what GRUB says of modules
  mov $pdpt, %eax
  or $3, %eax
  mov %eax, pml4
  mov $directories, %eax
  or $3, %eax
  xor %ecx, %ecx
1:
  mov %eax, pdpt(, %ecx, 8)
  add $4096, %eax
  inc %ecx
  cmp $4, %ecx
  jne 1b
  xor %ecx, %ecx
  mov $0x83, %eax                     // present, writable, 2 MiB
2:
  mov %eax, directories(, %ecx, 8)
  add $0x200000, %eax
  inc %ecx
  cmp $2048, %ecx
  jne 2b
  mov $pml4, %eax
  mov %eax, %cr3
  mov $0x50620, %eax                  // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE
  mov %eax, %cr4
  mov $0xC0000080, %ecx
  rdmsr
  or $0x101, %eax                     // EFER: syscall, long mode
  wrmsr
  mov $0x80000033, %eax               // PG, NE, ET, MP, PE
  mov %eax, %cr0
  lgdt gdt_register
  ljmp $8, $long_mode

.code64
long_mode:
  mov $0x10, %ax
  mov %ax, %ds
  mov %ax, %es
  mov %ax, %ss
  mov %ax, %fs
  mov %ax, %gs
  mov $own_stack, %rsp
  fninit
  ldmxcsr mxcsr
  mov %esi, %edi
  call Main

// Begin(entry, stack): the program, with nothing in its registers.
.globl Begin
Begin:
  mov %rsi, %rsp
  mov %rdi, %rcx
  xor %eax, %eax
  xor %ebx, %ebx
  xor %edx, %edx
  xor %esi, %esi
  xor %edi, %edi
  xor %ebp, %ebp
  jmp *%rcx

// rax number, rdi rsi rdx r10 r8 arguments; rcx where to go on, r11 flags.
.globl SystemCallEntry
SystemCallEntry:
  mov %rsp, program_stack
  mov $own_stack, %rsp
  push %rcx
  push %r11
  push %rdi
  push %rsi
  push %rdx
  push %r8
  push %r9
  push %r10
  mov %r8, %r9
  mov %r10, %r8
  mov %rdx, %rcx
  mov %rsi, %rdx
  mov %rdi, %rsi
  mov %rax, %rdi
  call SystemCall
  pop %r10
  pop %r9
  pop %r8
  pop %rdx
  pop %rsi
  pop %rdi
  popfq
  pop %rcx
  mov program_stack, %rsp
  jmp *%rcx

// Nobody goes on after a fault: it is told, and the machine stops.
.altmacro
.macro fault_entry n
fault_\n:
  .if (\n == 8) || (\n == 10) || (\n == 11) || (\n == 12) || (\n == 13) || (\n == 14) || (\n == 17) || (\n == 21)
  .else
    push $0                           // the processor gave no error code
  .endif
  push $\n
  jmp fault_common
.endm
.macro fault_address n
  .quad fault_\n
.endm
.set i, 0
.rept 32
  fault_entry %i
  .set i, i + 1
.endr
fault_common:
  mov %rsp, %rdi
  mov %cr2, %rsi
  mov $own_stack, %rsp
  call Fault

.section .data
.globl fault_entries
fault_entries:
.set i, 0
.rept 32
  fault_address %i
  .set i, i + 1
.endr
gdt:
  .quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
gdt_register:
  .word 23
  .long gdt
mxcsr:
  .long 0x1F80

.section .bss
.align 4096
pml4:
  .skip 4096
pdpt:
  .skip 4096
directories:
  .skip 16384
  .skip 65536
own_stack:
program_stack:
  .quad 0
.section .note.GNU-stack, "", @progbits
