# pygpt._C_emulated: the same kernels as PTX, linked with the emulator of tests/emulator in the place of the CUDA
# runtime. For tests; never in a wheel that is built without PYGPT_EMULATOR=ON. Needs nvcc, but no GPU.
find_program(PYGPT_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT PYGPT_NVCC)
  message(FATAL_ERROR "PYGPT_EMULATOR is ON, but there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
endif()
add_subdirectory(tests/emulator EXCLUDE_FROM_ALL)

set(emulated_objects)
set(folders ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda ${CMAKE_CURRENT_SOURCE_DIR}/tests/emulator)
foreach(file IN LISTS PYGPT_CUDA_FILES ITEMS ${CMAKE_CURRENT_SOURCE_DIR}/tests/emulator/touch.cu)
  set(name ${file})
  foreach(folder IN LISTS folders)
    string(REPLACE ${folder}/ "" name ${name})
  endforeach()
  set(object ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.o)
  cmake_path(GET object PARENT_PATH folder)
  file(MAKE_DIRECTORY ${folder})
  set(codes -gencode arch=compute_90a,code=compute_90a)
  if(NOT file IN_LIST PYGPT_CUDA_SM90_FILES)
    list(PREPEND codes -gencode arch=compute_80,code=compute_80)
  endif()
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${CMAKE_CUDA_COMPILER_LAUNCHER} ${PYGPT_NVCC} -std=c++20 ${PYGPT_NVCC_FLAGS} -lineinfo -Xcompiler=-fPIC
            -ccbin ${CMAKE_CXX_COMPILER} ${codes} --no-compress -cudart none -I${CMAKE_CURRENT_SOURCE_DIR}/csrc
            -MD -MF ${object}.d -c ${file} -o ${object}
    DEPENDS ${file}
    DEPFILE ${object}.d
    VERBATIM)
  list(APPEND emulated_objects ${object})
endforeach()

# A torch built for CUDA loads the real CUDA runtime for the whole process: our calls must find the emulator's.
pygpt_module(_C_emulated CUDA OBJECTS ${emulated_objects} DEFINITIONS PYGPT_EMULATED PYGPT_CUDA_SM90A
             LIBRARIES pygpt_emulator)
target_link_options(_C_emulated PRIVATE -Wl,-Bsymbolic -Wl,--exclude-libs,ALL)
